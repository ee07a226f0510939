from pathlib import Path

import pytest

from srpo_core.config import load_settings
from srpo_core.models import load_transformer
from srpo_core.preflight.disk import bytes_of_run, count_weights

ROOT = Path(__file__).resolve().parents[2]
FLUX = 11_901_408_320
GB = 1e9


def settings(profile):
    return load_settings(ROOT / f"profiles/{profile}.yaml")


def test_the_weight_count_equals_the_parameter_count_of_the_model():
    directory = ROOT / "assets/tiny/family/base/transformer"
    weights = load_transformer(settings("tiny").model, directory).parameters()
    assert count_weights(directory) == sum(parameter.numel() for parameter in weights)


def test_a_directory_without_weights_counts_as_zero(tmp_path):
    assert count_weights(tmp_path / "nowhere") == 0


def test_a_run_of_flux_needs_one_and_six_tenths_of_a_terabyte():
    found = {what: size / GB for what, size in bytes_of_run(settings("flux1_dev"), FLUX).items()}
    # four float32 checkpoints in the workspace, in DVC's cache and in the checkout
    assert found["checkpoints"] == pytest.approx(4 * 4 * 11.9014 * 3, rel=1e-4)
    # weights of all until the stage ends; moments of the two that are kept and of the one being written
    assert found["state to resume training"] == pytest.approx((4 * 4 + 3 * 8) * 11.9014, rel=1e-4)
    assert found["images that later runs reuse"] == settings("flux1_dev").resources.kept_images_gb == 20
    assert sum(found.values()) == pytest.approx(1597.0, abs=1)


def test_adapters_need_one_merged_model_for_a_while_and_almost_no_resume_state():
    full, adapters = (bytes_of_run(settings(name), FLUX) for name in ("flux1_dev", "flux1_dev_lora"))
    assert adapters["checkpoints"] / GB == pytest.approx(4 * 11.9014, rel=1e-4)
    assert adapters["state to resume training"] == 0 < full["state to resume training"]


def test_the_size_of_a_format_includes_workspace_cache_checkout_and_store():
    whole = settings("tiny")

    def gigabytes(*formats):
        limits = next(iter(whole.quantize.formats.values()))
        quantize = whole.quantize.model_copy(update={"formats": dict.fromkeys(formats, limits)})
        found = bytes_of_run(whole.model_copy(update={"quantize": quantize}), 10**9)
        return found["formats, and their release"] / GB

    both = gigabytes("bf16")
    assert both == 4 * 2 * 2, "in a diffusers directory and in one file"
    assert gigabytes("bf16", "fp8_e4m3fn") - both == 4
    assert gigabytes("bf16", "q8_0") - both == pytest.approx(4 * 34 / 32)
