import shutil
from pathlib import Path

import pytest

from srpo_core.config import load_settings
from srpo_core.preflight import doctor
from srpo_core.preflight.doctor import examine
from srpo_core.preflight.weight_files import weight_paths

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def weights(monkeypatch):
    """Return the lines about weights for a preset, in the checkout."""
    monkeypatch.chdir(ROOT)

    def lines(profile):
        found = examine(load_settings(ROOT / f"profiles/{profile}.yaml"))
        return [finding for finding in found if finding.what == "weights"]

    return lines


def test_each_directory_of_weights_has_a_line(weights):
    assert [(finding.good, finding.detail) for finding in weights("tiny")] == [
        (True, f"assets/tiny/family/{part}") for part in ("base", "reward", "judge_a", "judge_b")
    ]


def test_missing_weights_of_flux1_dev_are_reported_model_by_model_with_the_next_step(weights):
    base, reward, select_judge, judge, alignment = weights("flux1_dev")
    assert not any(finding.good for finding in (base, reward, select_judge, judge))
    assert base.detail == (
        "models/flux1_dev: 24 of 24 files are missing, first LICENSE.md: run 'srpo fetch' with the same --profile"
    )
    assert "models/hps_v2_1: 1 of 1 files are missing" in reward.detail
    assert "models/clip_vit_h_14: " in select_judge.detail
    assert "models/pick_score: 2 of 2 files are missing" in judge.detail
    assert "models/clip_vit_l_14: 2 of 2 files are missing" in alignment.detail


def test_the_directories_of_weights_include_further_scorers_each_once():
    settings = load_settings(ROOT / "profiles/tiny.yaml")
    further = {
        "second": settings.rewards[0],
        "third": settings.rewards[0].model_copy(update={"path": "models/third"}),
    }
    more = settings.model_copy(update={"evaluate": settings.evaluate.model_copy(update={"scorers": further})})
    assert weight_paths(more) == [*weight_paths(settings), "models/third"]


def test_the_free_disk_space_is_compared_with_what_the_run_writes(monkeypatch):
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
    assert short.detail == "4 GB free here (a run needs at most 6 GB more than earlier runs take)"


def test_the_old_name_of_the_variable_srpo_shared_is_reported(monkeypatch):
    monkeypatch.chdir(ROOT)
    settings = load_settings(ROOT / "profiles/tiny.yaml")

    def shared():
        return next(finding for finding in examine(settings) if finding.what == "shared")

    monkeypatch.delenv("SRPO_SHARED", raising=False)
    assert shared().good
    monkeypatch.setenv("SRPO_STORAGE", "s3://bucket")
    assert not shared().good
    assert shared().detail == "the variable SRPO_STORAGE is now SRPO_SHARED: rename it in the environment"


def test_a_damaged_lock_of_models_does_not_end_the_doctor(monkeypatch, tmp_path):
    settings = load_settings(ROOT / "profiles/flux1_dev.yaml")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models.lock").write_text('["oops"\n')
    checks = {name: doctor.CHECKS[name] for name in ("weights", "programs")}
    monkeypatch.setattr(doctor, "CHECKS", checks)
    *weights, programs = examine(settings)
    assert not any(finding.good for finding in weights)
    assert "models.lock cannot be read: models.lock is not YAML" in weights[0].detail
    assert programs.what == "programs"
