"""Parity on vectors of another seed: no tolerance is fitted to the seed of tests/golden."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.pipeline
def test_the_golden_tests_pass_on_vectors_of_another_seed(tmp_path):
    make = [sys.executable, str(ROOT / "tests/golden/make_seed.py"), str(tmp_path), "--seed", "20261124"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "SRPO_GOLDEN_DIR": str(tmp_path)}
    subprocess.run(make, check=True, cwd=ROOT, env=environment)
    files = ["tests/algorithm/test_golden.py", "tests/scorers/test_golden.py"]
    test = [sys.executable, "-m", "pytest", *files, "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(test, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    counts = re.search(r"golden vectors: (\d+) cases, (\d+) rows of index tables", done.stdout)
    assert counts.groups() == ("6", "2364")
