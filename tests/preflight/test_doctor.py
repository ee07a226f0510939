import shutil
from pathlib import Path

import pytest

from srpo_core.config import load_settings
from srpo_core.preflight.doctor import examine, weight_paths

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def weights(monkeypatch):
    """The lines about weights for a preset, in the checkout."""
    monkeypatch.chdir(ROOT)

    def lines(profile):
        found = examine(load_settings(ROOT / f"profiles/{profile}.yaml"))
        return [finding for finding in found if finding.what == "weights"]

    return lines


def test_each_directory_of_weights_has_a_line(weights):
    assert [(finding.good, finding.detail) for finding in weights("tiny")] == [
        (True, f"assets/tiny/family/{part}") for part in ("base", "reward", "judge_a", "judge_b")
    ]


def test_what_is_missing_of_flux1_dev_is_said_model_by_model_with_the_next_step(weights):
    base, reward, select_judge, judge, alignment = weights("flux1_dev")
    assert not any(finding.good for finding in (base, reward, select_judge, judge))
    assert base.detail == (
        "models/flux1_dev: 24 of 24 files are missing, first LICENSE.md: run 'srpo fetch' with the same --profile"
    )
    assert "models/hps_v2_1: 1 of 1 files are missing" in reward.detail
    assert "models/clip_vit_h_14: " in select_judge.detail
    assert "models/pick_score: 2 of 2 files are missing" in judge.detail
    assert "models/clip_vit_l_14: 2 of 2 files are missing" in alignment.detail


def test_further_scorers_are_looked_for_too_and_every_directory_once():
    settings = load_settings(ROOT / "profiles/tiny.yaml")
    further = {
        "second": settings.reward,
        "third": settings.reward.model_copy(update={"path": "models/third"}),
    }
    more = settings.model_copy(update={"evaluate": settings.evaluate.model_copy(update={"scorers": further})})
    assert weight_paths(more) == [*weight_paths(settings), "models/third"]


def test_the_disk_is_asked_for_what_the_run_will_write(monkeypatch):
    monkeypatch.chdir(ROOT)
    settings = load_settings(ROOT / "profiles/tiny.yaml")
    usage = shutil.disk_usage(ROOT)

    def with_free(gigabytes):
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=int(gigabytes * 1e9)))
        (found,) = (finding for finding in examine(settings) if finding.what == "disk")
        return found

    assert with_free(10).good
    short = with_free(4)
    assert not short.good
    assert short.detail == "4 GB free here (5 GB are needed at most, beside earlier runs)"
