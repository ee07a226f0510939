"""A run behind a dead proxy, in a path with any letter, with a home that cannot be written, on a terminal of Latin-1.

tests/pipeline/test_hostile_machine.py runs the whole pipeline there, nightly.
"""

import os
import subprocess
import sys

import pytest
from closed_home import is_unchanged, make_closed_home
from standin import ROOT, keep_stages, make_standin

pytestmark = pytest.mark.pipeline

PROXIES = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
LEFT_OUT = ("no_proxy", "NO_PROXY", "SRPO_HOME", "XDG_CACHE_HOME", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def test_a_run_behind_a_dead_proxy_in_a_path_with_any_letter_completes_and_leaves_the_home_alone(
    tmp_path, prefect
):
    home = make_closed_home(tmp_path / "heim")
    checkout = make_standin(tmp_path / "klön Ω 1")
    keep_stages(checkout, "gate", "report")
    environment = {
        name: value
        for name, value in {**os.environ, **prefect.environment}.items()
        if name not in LEFT_OUT and not name.startswith("GIT_")
    }
    environment |= dict.fromkeys(PROXIES, "http://127.0.0.1:9")
    environment |= {
        "HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "PYTHONIOENCODING": "latin-1",
        "NO_COLOR": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "srpo_core", "align", "--profile=tiny", "--no-publish"],
        cwd=checkout,
        env=environment,
        capture_output=True,
        encoding="latin-1",
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert [f"+ {stage} " in done.stderr for stage in ("gate", "report")] == [True, True], done.stderr
    assert "verdict  passed" in done.stdout
    assert "passed" in (checkout / "runs/gate/decision.json").read_text(encoding="utf-8")
    assert (checkout / ".srpo/report.html").is_file()
    assert (checkout / ".srpo/user/ray_auth_token").is_file()
    assert is_unchanged(home)
