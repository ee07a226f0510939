"""`srpo doctor`, and loading, on what people give in place of a pipeline or a scorer."""

import shutil
from pathlib import Path

import pytest
from spoiled_weights import FAMILY, TINY, faults, with_model, write_lock
from wrong_files import PAGE

from srpo_core.errors import ArtifactError, DataError
from srpo_core.models import load_base
from srpo_core.preflight.weight_files import require_readable_weights
from srpo_core.scorers import load_scorer


def test_what_is_given_in_place_of_a_pipeline_is_named_with_what_to_give(checkout):
    import torch

    shutil.copy(Path(FAMILY, "base/transformer/diffusion_pytorch_model.safetensors"), "flux.safetensors")
    torch.save({"a": torch.ones(1)}, "flux.pt")
    Path("empty").mkdir()
    write_lock("models/dev", ["x"], "bfl/dev")
    expected = {
        "someone/FLUX.1-dev": "if it is a repository of the hub, download it and give the directory: hf download "
        "someone/FLUX.1-dev --local-dir models/FLUX.1-dev",
        "bfl/dev": "bfl/dev is a repository of the hub, in models.lock as models/dev: run 'srpo fetch' and give models/dev",
        "https://huggingface.co/bfl/dev": "https://huggingface.co/bfl/dev is a URL: download what it names and give the path of the copy",
        "flux.safetensors": "flux.safetensors is a safetensors file: the directory of a diffusers pipeline",
        "flux.pt": "flux.pt is a pickle of PyTorch: the directory of a diffusers pipeline",
        "assets/nothing": "assets/nothing is missing: check the path",
        "empty": "empty/model_index.json is missing: give the directory of a diffusers pipeline",
        "models/dev": "models/dev: 1 of 1 files are missing, first x: run 'srpo fetch'",
    }
    for path, message in expected.items():
        (fault,) = faults(with_model(path))
        assert message in fault
        with pytest.raises(ArtifactError) as caught:
            load_base(with_model(path).model)
        assert "\n" not in str(caught.value)


def test_what_is_given_in_place_of_a_scorer_is_named_with_what_to_give(checkout):
    import torch
    from gguf import GGUFWriter

    torch.save({"a": torch.ones(1)}, "clip.pt")
    writer = GGUFWriter("clip.gguf", "clip")
    writer.add_tensor("a", torch.ones(32).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    Path("page.safetensors").write_bytes(PAGE)
    needed = "the directory with a scorer's weights and configuration is needed"
    expected = {
        "clip.pt": f"clip.pt is a pickle of PyTorch: {needed}",
        "clip.gguf": f"clip.gguf is a GGUF file: {needed}",
        "page.safetensors": "page.safetensors: this is an HTML page: ",
        "openai/clip": "hf download openai/clip --local-dir models/clip",
        "s3://bucket/clip": "s3://bucket/clip is a URL: ",
    }
    for path, message in expected.items():
        reward = TINY.rewards[0].model_copy(update={"path": path})
        settings = TINY.model_copy(update={"rewards": [reward]})
        (fault,) = faults(settings)
        assert message in fault
        with pytest.raises(DataError, match=r"^rewards\[0\]\.path: ") as caught:
            require_readable_weights(settings)
        assert message in str(caught.value)
        with pytest.raises(ArtifactError) as caught:
            load_scorer(reward)
        assert message in str(caught.value)


def test_a_repository_of_the_hub_is_named_however_it_is_written(checkout):
    write_lock("models/dev", ["x"], "bfl/dev")
    download = "download it and give the directory: hf download a/b"
    expected = {
        "huggingface.co/a/b": f"{download} --local-dir models/b",
        "www.huggingface.co/a/b/": f"{download} --local-dir models/b",
        "hf.co/a/b/tree/main": f"{download} --revision main --local-dir models/b",
        "huggingface.co/a/b/resolve/v1/x.safetensors": f"{download} --revision v1 --local-dir models/b",
        "a/b@main": f"{download} --revision main --local-dir models/b",
        "a/b@refs/pr/3": f"{download} --revision refs/pr/3 --local-dir models/b",
        "huggingface.co/bfl/dev": "run 'srpo fetch' and give models/dev",
        "bfl/dev@main": "run 'srpo fetch' and give models/dev",
        "assets/b@main": "assets/b@main is missing: check the path",
        "models/b@main": "models/b@main is missing: check the path",
    }
    for path, message in expected.items():
        (fault,) = faults(with_model(path))
        assert fault.startswith(path)
        assert message in fault
