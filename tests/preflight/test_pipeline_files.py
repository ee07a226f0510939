"""`srpo doctor`, and loading, on pipelines that lack a part, or whose weights are in shards, pickles or few bits."""

import json
import shutil
from pathlib import Path

import pytest
from spoiled_weights import FAMILY, TINY, faults, load_encoders, replace, text_encoder_in_pickles
from wrong_files import POINTER

from srpo_core.errors import ArtifactError, DataError
from srpo_core.models import load_base
from srpo_core.preflight.weight_files import require_readable_weights


def test_parts_of_a_pipeline_that_are_missing_or_only_there_as_a_variant_are_named(checkout):
    base = Path(FAMILY, "base")
    (base / "vae/diffusion_pytorch_model.safetensors").rename(
        base / "vae/diffusion_pytorch_model.fp16.safetensors"
    )
    (base / "text_encoder/model.safetensors").unlink()
    (base / "transformer/config.json").unlink()
    shutil.rmtree(base / "tokenizer_2")
    found = "\n".join(faults())
    assert len(faults()) == 4
    assert (
        "diffusion_pytorch_model.fp16.safetensors is a variant of it, which is read only under the usual name"
        in found
    )
    assert "text_encoder/model.safetensors is missing: fetch it" in found
    assert "transformer/config.json is missing: fetch it" in found
    assert "tokenizer_2 is missing, which model_index.json names: fetch the whole pipeline" in found
    with pytest.raises(DataError, match=r"\(3 more: 'srpo doctor' lists them\)$"):
        require_readable_weights(TINY)


@pytest.mark.parametrize(
    ("part", "load"),
    [("transformer/diffusion_pytorch_model", load_base), ("text_encoder_2/model", load_encoders)],
)
def test_quantized_weights_are_refused_with_the_command_that_decodes_them(checkout, part, load):
    """diffusers loads scaled float8 without its scales and without a word."""
    import torch
    from safetensors.torch import load_file, save_file

    path = Path(FAMILY, "base", f"{part}.safetensors")
    tensors = load_file(path)
    name = next(name for name, value in tensors.items() if value.dim() == 2)
    path.unlink()
    save_file({**tensors, name: tensors[name].to(torch.float8_e4m3fn)}, path)
    (fault,) = faults()
    assert fault.startswith(f"{path}: {name} is stored as F8_E4M3, and a run needs whole floats")
    assert "'srpo quantize SOURCE --format bf16 --out DIR'" in fault
    with pytest.raises(ArtifactError, match="is stored as F8_E4M3"):
        load(TINY.model)


def test_the_shards_of_an_index_are_opened_and_compared_with_it(checkout):
    from safetensors.torch import load_file, save_file

    directory = Path(FAMILY, "base/transformer")
    tensors = load_file(directory / "diffusion_pytorch_model.safetensors")
    (directory / "diffusion_pytorch_model.safetensors").unlink()
    first, second = sorted(tensors)[::2], sorted(tensors)[1::2]
    for name, part in (("a.safetensors", first), ("b.safetensors", second)):
        save_file({key: tensors[key] for key in part}, directory / name)
    index = directory / "diffusion_pytorch_model.safetensors.index.json"
    weight_map = dict.fromkeys(first, "a.safetensors") | dict.fromkeys(second, "b.safetensors")
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert faults() == []
    index.write_text(json.dumps({"weight_map": weight_map | {first[0]: "b.safetensors"}}))
    assert all(f"do not agree about the tensor {first[0]}" in fault for fault in faults())
    assert len(faults()) == 2
    index.write_text(json.dumps({"weight_map": weight_map}))
    (directory / "b.safetensors").write_bytes(POINTER)
    (fault,) = faults()
    assert "b.safetensors: this is a Git LFS pointer" in fault
    (directory / "b.safetensors").unlink()
    (fault,) = faults()
    assert "1 of the 2 files of" in fault
    assert "are missing, first b.safetensors" in fault


def test_the_pickles_of_a_text_encoders_index_are_opened(checkout):
    directory = text_encoder_in_pickles(Path(FAMILY))
    assert faults() == []
    replace(directory / "pytorch_model-00002-of-00002.bin", POINTER)
    (fault,) = faults()
    assert "pytorch_model-00002-of-00002.bin: this is a Git LFS pointer" in fault


def test_a_text_encoder_that_lacks_a_pickle_of_its_index_is_refused_as_by_loading(checkout):
    text_encoder_in_pickles(Path(FAMILY), missing=["pytorch_model-00002-of-00002.bin"])
    (fault,) = faults()
    assert "1 of the 2 files of" in fault
    assert "are missing, first pytorch_model-00002-of-00002.bin" in fault
    with pytest.raises(ArtifactError, match="are missing, first"):
        load_encoders(TINY.model)


def test_shards_without_their_index_are_named(checkout):
    directory = Path(FAMILY, "base/transformer")
    (directory / "diffusion_pytorch_model.safetensors").rename(
        directory / "diffusion_pytorch_model-00001-of-00002.safetensors"
    )
    (fault,) = faults()
    assert fault.endswith(
        "diffusion_pytorch_model.safetensors.index.json is missing, but shards are there: fetch it, too"
    )


def test_an_index_beside_a_whole_file_counts_as_diffusers_takes_it(checkout):
    """diffusers prefers an index to the whole file."""
    index = Path(FAMILY, "base/transformer/diffusion_pytorch_model.safetensors.index.json")
    index.write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    (fault,) = faults()
    assert "are missing, first gone.safetensors" in fault
    with pytest.raises(ArtifactError):
        load_base(TINY.model)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("transformer/config.json", "[1]", "config.json is damaged (no JSON object)"),
        ("text_encoder/config.json", '"a"', "config.json is damaged (no JSON object)"),
        ("tokenizer/tokenizer.json", "1", "tokenizer.json is damaged (no JSON object)"),
        ("scheduler/scheduler_config.json", "null", "scheduler_config.json is damaged (no JSON object)"),
        ("model_index.json", "[]", "model_index.json is damaged (no JSON object)"),
        ("model_index.json", "{}", "does not name scheduler, text_encoder, text_encoder_2, tokenizer, "),
        (
            "model_index.json",
            '{"_class_name": "FluxPipeline", "vae": [null, null]}',
            "transformer, vae, which",
        ),
    ],
)
def test_json_that_is_no_object_or_lacks_parts_of_the_base_is_refused(checkout, name, text, message):
    replace(Path(FAMILY, "base", name), text.encode())
    (fault,) = faults()
    assert message in fault
    with pytest.raises(ArtifactError):
        load_encoders(TINY.model)
