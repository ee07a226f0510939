"""The flow evaluate-checkpoint beside a stand-in of the command that it runs; tests/pipeline runs the real one."""

import pytest

from flows.evaluate import evaluate_checkpoint
from srpo_core.errors import StageError

pytestmark = pytest.mark.pipeline

COMMAND = """\
import json, os, sys
from pathlib import Path
print("arguments", sys.argv[1:], flush=True)
assert "SRPO_SIGNING_KEY" not in os.environ
if Path("refuse").exists():
    print("srpo: error: judge: 3 of 16 questions have a wrong answer", file=sys.stderr)
    sys.exit(3)
target = Path(sys.argv[sys.argv.index("--output") + 1])
target.mkdir(parents=True, exist_ok=True)
(target / "decision.json").write_text(json.dumps({"passed": False, "reason": "too few wins.", "rules": []}))
sys.exit(3)
"""


@pytest.fixture
def checkout(tmp_path, monkeypatch, prefect):
    (tmp_path / "srpo_core").mkdir()
    (tmp_path / "srpo_core/__main__.py").write_text(COMMAND)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("SRPO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SRPO_SIGNING_KEY", "/nowhere/key")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_refused_checkpoint_is_a_result_and_a_refused_scorer_is_an_error(checkout):
    assert evaluate_checkpoint("-step-10")["reason"] == "too few wins."
    (checkout / "refuse").touch()
    with pytest.raises(StageError, match=r"^judge: 3 of 16 questions have a wrong answer$") as caught:
        evaluate_checkpoint("-step-10")
    assert caught.value.exit_code == 3
