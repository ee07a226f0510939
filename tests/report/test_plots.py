"""`dvc plots show` with this repository's template needs no network."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        shutil.which("chromium") is None, reason="no Chromium on this machine (apt-get install chromium)"
    ),
]


def test_training_curves_are_drawn_without_external_resources(tmp_path):
    project = tmp_path / "project"
    (project / ".dvc").mkdir(parents=True)
    for name in ("config", "plots.html"):
        shutil.copy(ROOT / ".dvc" / name, project / ".dvc")
    (project / "dvc.yaml").write_text("plots:\n  - curves:\n      x: step\n")
    (project / "curves").mkdir()
    (project / "curves/loss.tsv").write_text("step\tloss\n1\t0.7\n2\t0.5\n3\t0.4\n")
    subprocess.run(["git", "init", "--quiet"], cwd=project, check=True)
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1", "HOME": str(tmp_path)}
    done = subprocess.run(
        ["dvc", "plots", "show", "--out", "page"],
        cwd=project, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    page = project / "page/index.html"
    assert page.as_uri() in done.stdout
    assert not re.search(r"<script[^>]+src=", page.read_text())
    shown = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000",
         f"--user-data-dir={tmp_path / 'chrome'}", "--dump-dom", page.as_uri()],
        env=environment, capture_output=True, text=True, timeout=120, check=True,
    ).stdout  # fmt: skip
    drawn = shown[shown.rindex("<body") :]
    assert re.search(r"<(canvas|svg)[^>]*class=\"marks\"", drawn)
