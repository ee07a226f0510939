import json
from pathlib import Path

import pytest

from srpo_core import artifacts
from srpo_core.config import load_settings
from srpo_core.report.costs import COST_MARK
from srpo_core.report.formats import FORMATS_MARK
from srpo_core.report.full_report import write_whole
from srpo_core.runtime import timings

ROOT = Path(__file__).resolve().parents[2]
PAGE = f"<p>the page</p>{FORMATS_MARK}{COST_MARK}"
BF16 = {"files": {"a": {"bytes": 2_000_000}}, "relative_error": 0.01, "psnr": None, "gain_kept": 0.9}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Return a function that writes the files of a finished run and changes to another directory."""
    root = tmp_path / "workspace"
    (tmp_path / "elsewhere").mkdir()
    root.mkdir()
    monkeypatch.setenv("SRPO_HOME", str(tmp_path / "home"))
    (root / "dvc.yaml").write_text('stages: {train: {cmd: "true", deps: [weights], params: [seed]}}')
    (root / "params.yaml").write_text("seed: 0")
    (root / "weights").write_bytes(b"w")
    monkeypatch.chdir(root)

    def write_run(*, passed=True, proof=True, timed=True):
        artifacts.write_json(artifacts.DECISION, {"passed": passed})
        artifacts.REPORT.parent.mkdir(parents=True, exist_ok=True)
        artifacts.REPORT.write_text(PAGE)
        if proof:
            artifacts.write_json(
                artifacts.PROOF, {"formats": {"bf16": BF16 | {"refused": []}}, "refused": {}}
            )
        if timed:
            with timings.timed("train", load_settings(ROOT / "profiles/tiny.yaml").resources):
                pass
            (record,) = (tmp_path / "home/timings").rglob("*.json")
            values = json.loads(record.read_text())
            record.write_text(json.dumps(values | {"seconds": 36.0, "price": 100}))
        monkeypatch.chdir(tmp_path / "elsewhere")
        monkeypatch.setenv("SRPO_HOME", str(tmp_path / "another"))
        return root

    return write_run


def test_the_full_report_adds_formats_and_cost_and_the_page_of_the_run_is_unchanged(run, tmp_path):
    root = run()
    cost = write_whole(Path("whole.html"), root=root, home=tmp_path / "home", cached=["train"])
    assert [(one.stage, one.wall_hours) for one in cost.stages] == [("train", 0.01)]
    assert (cost.total.money, cost.this_run.money) == ({"USD": 1.0}, {})
    page = (tmp_path / "elsewhere/whole.html").read_text()
    assert page.startswith("<p>the page</p>")
    assert '<td class="name">bf16</td>' in page
    assert '<td class="name">train</td>' in page
    assert ">0.0100<" in page
    assert ">1.00 USD<" in page
    assert "train ran in an earlier run and came from the cache" in page
    assert (root / artifacts.REPORT).read_text() == PAGE
    assert Path.cwd() == tmp_path / "elsewhere"


def test_the_report_of_a_refused_model_omits_the_formats_of_an_earlier_run(run, tmp_path):
    write_whole(tmp_path / "whole.html", root=run(passed=False), home=tmp_path / "home")
    page = (tmp_path / "whole.html").read_text()
    assert FORMATS_MARK in page
    assert '<td class="name">train</td>' in page


def test_without_times_and_formats_the_full_report_equals_the_page(run, tmp_path):
    root = run(proof=False, timed=False)
    assert write_whole(tmp_path / "whole.html", root=root, home=tmp_path / "home") is None
    assert (tmp_path / "whole.html").read_text() == PAGE
    assert json.loads((root / artifacts.DECISION).read_text())["passed"]
