import re
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from srpo_core.config import ControlWords, ScorerSettings
from srpo_core.errors import ConfigError
from srpo_core.scorers import SCORERS, load_scorer
from srpo_core.scorers.kernel_distance import kernel_distances
from srpo_core.scorers.metrics import MetricContext, check_metrics
from srpo_core.scorers.packages import PACKAGES, require_package

ROOT = Path(__file__).resolve().parents[2]
NEEDS = {
    "open_clip": ["open_clip"],
    "hps_v2": ["open_clip"],
    "pick_score": ["transformers", "open_clip"],
    "clip_score": ["transformers", "open_clip"],
    "timm_judge": ["timm"],
    "style_subject_judge": [],
}
PAIRS = [(scorer, package) for scorer, packages in NEEDS.items() for package in packages]


def hide(monkeypatch, package):
    """Make every import of the package fail, as if it were not installed."""
    monkeypatch.setitem(sys.modules, package, None)


def refused(act, package):
    with pytest.raises(ConfigError) as caught:
        act()
    line = str(caught.value)
    assert "\n" not in line
    assert f"needs the package {package}, which is not installed: pip install {PACKAGES[package]}," in line
    return line


def test_every_scorer_is_tested_without_its_packages():
    assert NEEDS.keys() == SCORERS.keys()


@pytest.mark.parametrize(("scorer", "package"), PAIRS)
def test_the_error_for_a_missing_package_is_one_line_with_the_install_command(
    scorer, package, directories, monkeypatch
):
    settings = ScorerSettings(scorer=scorer, path=str(directories[scorer]))
    hide(monkeypatch, package)
    assert str(directories[scorer]) in refused(lambda: load_scorer(settings), package)


def test_hps_without_a_configuration_file_also_reports_that_open_clip_is_missing(tmp_path, monkeypatch):
    (tmp_path / "HPS_v2.1_compressed.pt").touch()
    hide(monkeypatch, "open_clip")
    refused(lambda: load_scorer(ScorerSettings(scorer="hps_v2", path=str(tmp_path))), "open_clip")


def test_the_tiny_judge_needs_none_of_the_packages(directories, monkeypatch):
    for package in PACKAGES:
        hide(monkeypatch, package)
    path = str(directories["style_subject_judge"])
    judge = load_scorer(ScorerSettings(scorer="style_subject_judge", path=path))
    assert judge.features(torch.rand(1, 3, 64, 64)).ndim == 2


def test_the_kernel_distance_without_torchmetrics_is_refused_before_any_image_is_generated(
    directories, monkeypatch
):
    judge = ScorerSettings(scorer="style_subject_judge", path=str(directories["style_subject_judge"]))
    context = MetricContext([], judge, ControlWords.of(wanted=["Ink"], unwanted=["3D"]), real=list)
    hide(monkeypatch, "torchmetrics")
    refused(lambda: check_metrics(["kid"], context, ["cat"], num_seeds=2), "torchmetrics")
    refused(lambda: kernel_distances(torch.rand(3, 4), torch.rand(3, 4)), "torchmetrics")


def test_an_installed_package_is_accepted():
    for package in PACKAGES:
        require_package(package, "this test")


def test_the_install_name_of_each_package_is_a_dependency_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = {re.split(r"[<>=\[]", one)[0] for one in project["dependencies"]}
    assert set(PACKAGES.values()) <= known
