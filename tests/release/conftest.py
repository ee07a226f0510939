"""A small project reproduced by DVC (tiny base, checkpoint, formats, report, decision), and its release."""

import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from publishable import make_reproduced, record_run, run_quantize
from small_release import publish_small

from srpo_core.storage import open_store, version_key


def adapt(directory):
    """Write a checkpoint of adapters, as LoRA training does."""
    from srpo_core.config import LoraSettings, load_settings
    from srpo_core.models import load_base
    from srpo_core.models.lora import add_lora, initialize_lora, write_lora
    from srpo_core.training.state import trained_parameters

    lora = LoraSettings(rank=2, alpha=4, targets=["to_q", "proj_out"], frozen="float32")
    model = load_settings().model
    adapted = load_base(model).transformer
    adapted.save_config(directory)
    add_lora(adapted, lora)
    initialize_lora(adapted, seed=0)
    torch.manual_seed(0)
    adapters = {
        name: value + torch.randn_like(value) * 0.01 for name, value in trained_parameters(adapted).items()
    }
    write_lora(adapters, lora, directory)


@pytest.fixture(scope="session")
def reproduced(tmp_path_factory):
    """The project, made once; a test that changes it uses a copy."""
    return make_reproduced(tmp_path_factory.mktemp("project"))


@pytest.fixture
def project(reproduced, tmp_path):
    """A copy of the project to change."""
    return Path(shutil.copytree(reproduced, tmp_path / "project"))


@pytest.fixture
def record():
    """The function that records a project's outputs in dvc.lock, as `dvc commit` does."""
    return record_run


@pytest.fixture(scope="session")
def release(reproduced, tmp_path_factory):
    """A store with the project's release, and its publication; tests must not change it."""
    from srpo_core.release.publishing import publish

    store = open_store(str(tmp_path_factory.mktemp("published") / "store"))
    return store, publish(store, root=reproduced, who="tester", why="first")


@pytest.fixture(scope="session")
def adapted_release(reproduced, tmp_path_factory):
    """A release of a trained LoRA whose format fp8_e4m3fn was refused by a limit: (store, publication).

    It has two GGUF files, of a float type and of a quantized one. Tests must not change it.
    """
    from srpo_core import artifacts
    from srpo_core.release.publishing import publish

    root = Path(shutil.copytree(reproduced, tmp_path_factory.mktemp("adapted") / "project"))
    settings = yaml.safe_load((root / "params.yaml").read_text())
    loose = settings["quantize"]["formats"]["bf16"]
    settings["quantize"] |= {
        "num_prompts": 1,
        "formats": {
            "gguf_bf16": loose,
            "q5_0": loose,
            "fp8_e4m3fn": loose | {"min_psnr": 200},
            "bf16": loose,
        },
    }
    settings["generate"]["num_inference_steps"] = 2
    (root / "params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        shutil.rmtree(artifacts.QUANTIZED.parent)
        shutil.rmtree(artifacts.step_directory(10))
        adapt(artifacts.step_directory(10))
        run_quantize()
    record_run(root)
    store = open_store(str(tmp_path_factory.mktemp("published") / "store"))
    return store, publish(store, root=root)


@pytest.fixture(params=["directory", pytest.param("s3", marks=pytest.mark.s3)])
def store(request, tmp_path):
    if request.param == "directory":
        return open_store(str(tmp_path / "store"))
    return open_store(f"s3://{request.getfixturevalue('bucket')}/p")


@pytest.fixture
def publish(store, tmp_path):
    """A function that publishes a small version; its number is also the day it was made."""
    return partial(publish_small, store, tmp_path)


@pytest.fixture
def damaged(release, tmp_path):
    """A copy of the store that the test may damage: (store, directory of the release)."""
    store, published = release
    copy = shutil.copytree(store.uri, tmp_path / "store")
    return open_store(str(copy)), copy / version_key(published.version)
