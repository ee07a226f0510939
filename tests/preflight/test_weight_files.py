"""`srpo doctor`, and `srpo align` before a run, on weights that are not what their names say."""

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml
from wrong_files import PAGE, POINTER

from srpo_core.config import load_settings
from srpo_core.errors import ArtifactError, DataError
from srpo_core.models import base_entry, load_base
from srpo_core.models.loading import load_text_encoders
from srpo_core.preflight.disk import count_weights
from srpo_core.preflight.weight_files import check_weights, require_readable_weights
from srpo_core.scorers import load_scorer
from srpo_core.weights import headers

ROOT = Path(__file__).resolve().parents[2]
TINY = load_settings(ROOT / "profiles/tiny.yaml")
FAMILY = "assets/tiny/family"


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """A copy of the demo's models."""
    return shutil.copytree(ROOT / FAMILY, tmp_path_factory.mktemp("models") / "family")


@pytest.fixture
def checkout(family, tmp_path, monkeypatch):
    """A directory with the graph of stages, and links to the copy of the demo's models: `replace` a file, never write it."""
    shutil.copytree(family, tmp_path / FAMILY, copy_function=os.link)
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def replace(path, content):
    path.unlink()
    path.write_bytes(content)


def faults(settings=TINY):
    return [detail for good, detail in check_weights(settings) if not good]


def test_intact_weights_have_no_fault(checkout):
    assert faults() == []
    require_readable_weights(TINY)


WEIGHTS = [
    "base/transformer/diffusion_pytorch_model.safetensors",
    "base/vae/diffusion_pytorch_model.safetensors",
    "base/text_encoder/model.safetensors",
    "base/text_encoder_2/model.safetensors",
    "reward/tiny-emoji-clip.safetensors",
    "judge_a/judge.safetensors",
    "judge_b/judge.safetensors",
]
TEXTS = [
    "base/model_index.json",
    "base/transformer/config.json",
    "base/vae/config.json",
    "base/text_encoder_2/config.json",
    "base/tokenizer/tokenizer.json",
    "base/tokenizer_2/tokenizer_config.json",
    "base/scheduler/scheduler_config.json",
    "reward/tiny-emoji-clip.json",
    "judge_a/config.json",
]


@pytest.mark.parametrize("name", WEIGHTS + TEXTS)
def test_doctor_and_align_name_a_file_that_is_something_else(checkout, name):
    path = Path(FAMILY, name)
    whole = path.read_bytes()
    wrong = {
        POINTER: "this is a Git LFS pointer: run git lfs pull",
        PAGE: "this is an HTML page: ",
        b"": "this file is empty: fetch it again",
        whole[: len(whole) // 2]: "cut at " if name in WEIGHTS else "is damaged (no JSON in UTF-8: ",
        b"\xef\xbb\xbf{}" if name in TEXTS else b"\x80\x02}q\0.": "byte order mark"
        if name in TEXTS
        else "pickle",
    }
    for content, message in wrong.items():
        replace(path, content)
        (fault,) = faults()
        assert fault.startswith(str(path))
        assert message in fault
        assert "\n" not in fault
        with pytest.raises(
            DataError, match=r"^(model|rewards\[0\]|select_judge|judge)\.path: assets/"
        ) as caught:
            require_readable_weights(TINY)
        assert str(caught.value).endswith(fault)


def test_the_disk_estimate_survives_a_pointer_and_says_nothing_about_it(checkout):
    transformer = Path(FAMILY, "base/transformer")
    assert count_weights(transformer) > 0
    replace(transformer / "diffusion_pytorch_model.safetensors", POINTER)
    assert count_weights(transformer) == 0


def load_encoders(model):
    return load_text_encoders(base_entry(model), model)


@pytest.mark.parametrize(
    ("name", "load"), [(WEIGHTS[0], load_base), (WEIGHTS[1], load_base), (TEXTS[4], load_encoders)]
)
def test_loading_the_base_says_what_doctor_says(checkout, name, load):
    replace(Path(FAMILY, name), POINTER)
    with pytest.raises(ArtifactError, match="this is a Git LFS pointer: run git lfs pull"):
        load(TINY.model)


@pytest.mark.parametrize(("name", "scorer"), [(WEIGHTS[4], TINY.rewards[0]), (WEIGHTS[6], TINY.judge)])
def test_loading_a_scorer_says_what_doctor_says(checkout, name, scorer):
    replace(Path(FAMILY, name), PAGE)
    with pytest.raises(ArtifactError, match="this is an HTML page: "):
        load_scorer(scorer)


def with_model(path):
    return TINY.model_copy(update={"model": TINY.model.model_copy(update={"path": path})})


def test_what_is_given_in_place_of_a_pipeline_is_named_with_what_to_give(checkout):
    import torch

    shutil.copy(Path(FAMILY, WEIGHTS[0]), "flux.safetensors")
    torch.save({"a": torch.ones(1)}, "flux.pt")
    Path("empty").mkdir()
    Path("models.lock").write_text(
        yaml.safe_dump(
            {
                "models/dev": {
                    "repo": "bfl/dev",
                    "revision": "a" * 40,
                    "files": {"x": None},
                    "architecture": {},
                }
            }
        )
    )
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


def test_files_that_no_scorer_reads_are_not_opened(checkout):
    for name in ("notes.txt", "cache.bin", "page.html"):
        Path(FAMILY, "reward", name).write_bytes(b"")
    Path(FAMILY, "base/other.safetensors").write_bytes(POINTER)
    assert faults() == []


def test_the_first_key_of_a_path_is_named(checkout):
    same = TINY.model_copy(update={"judge": TINY.select_judge})
    replace(Path(FAMILY, "judge_a/config.json"), PAGE)
    with pytest.raises(
        DataError, match=r"^select_judge\.path: assets/tiny/family/judge_a/config\.json: this is an HTML"
    ):
        require_readable_weights(same)


def test_a_reward_without_weights_says_what_is_there_instead(checkout):
    reward = Path(FAMILY, "reward")
    (reward / "tiny-emoji-clip.safetensors").unlink()
    (reward / "clip.gguf").write_bytes(b"GGUF")
    (fault,) = faults()
    assert fault.startswith(
        f"{reward} should have weights (.safetensors, or .pt as published), but has only clip.gguf"
    )


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


def test_a_graph_without_a_stage_that_reads_the_base_needs_no_weights(checkout):
    shutil.rmtree(FAMILY)
    with pytest.raises(DataError, match=r"model\.path: assets/tiny/family/base is missing: check the path"):
        require_readable_weights(TINY)
    Path("dvc.yaml").write_text("stages: {ingest: {cmd: x, deps: [a], outs: [b]}}")
    require_readable_weights(TINY)


def test_weights_that_dvc_will_fetch_are_not_missing(checkout):
    Path("mine.dvc").write_text("outs: []\n")
    assert faults(with_model("mine")) == []


def judge_without_configuration(family):
    (family / "judge_b/config.json").unlink()
    return "judge_b/config.json is missing", TINY.judge


def judge_under_another_name(family):
    (family / "judge_b/judge.safetensors").rename(family / "judge_b/x.safetensors")
    return "judge_b/judge.safetensors is missing: fetch it", TINY.judge


def judge_as_an_array(family):
    replace(family / "judge_b/config.json", b"[1]")
    return "judge_b/config.json is damaged (no JSON object)", TINY.judge


def reward_without_configuration(family):
    (family / "reward/tiny-emoji-clip.json").unlink()
    return "must contain one open_clip configuration NAME.json", TINY.rewards[0]


def reward_with_two_configurations(family):
    shutil.copy(family / "reward/tiny-emoji-clip.json", family / "reward/other.json")
    return "contains 2 configurations", TINY.rewards[0]


def reward_under_another_name(family):
    (family / "reward/tiny-emoji-clip.safetensors").rename(family / "reward/other.safetensors")
    return "tiny-emoji-clip.safetensors is missing: fetch it", TINY.rewards[0]


def clip_in_shards(family):
    """A CLIP of transformers of which only one shard is there; no scorer reads shards."""
    (family / "clip").mkdir()
    (family / "clip/config.json").write_text("{}")
    shutil.copy(family / "judge_a/judge.safetensors", family / "clip/model-00001-of-00002.safetensors")
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    (family / "clip/model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict(zip("ab", names, strict=True))})
    )
    return "clip/model.safetensors is missing: fetch it", scorer("clip_score", family / "clip")


def hps_with_two_weights(family):
    (family / "hps").mkdir()
    for name in ("a", "b"):
        shutil.copy(family / "judge_a/judge.safetensors", family / f"hps/{name}.safetensors")
    return "must contain one weights file", scorer("hps_v2", family / "hps")


def scorer(name, path):
    return TINY.rewards[0].model_copy(update={"scorer": name, "path": str(path)})


@pytest.mark.parametrize(
    "spoil",
    [
        judge_without_configuration,
        judge_under_another_name,
        judge_as_an_array,
        reward_without_configuration,
        reward_with_two_configurations,
        reward_under_another_name,
        clip_in_shards,
        hps_with_two_weights,
    ],
)
def test_doctor_refuses_a_scorer_that_loading_refuses(checkout, spoil):
    message, spoiled = spoil(Path(FAMILY))
    given = {"judge": spoiled} if spoiled is TINY.judge else {"rewards": [spoiled]}
    (fault,) = faults(TINY.model_copy(update=given))
    assert message in fault
    assert "\n" not in fault
    with pytest.raises(ArtifactError):
        load_scorer(spoiled)


def text_encoder_in_pickles(family, missing=()):
    """Replace a text encoder's weights by two pickles and their index."""
    import torch

    directory = family / "base/text_encoder_2"
    (directory / "model.safetensors").unlink()
    names = [f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)]
    for name in names:
        if name not in missing:
            torch.save({"a": torch.ones(1)}, directory / name)
    weights = dict(zip("ab", names, strict=True))
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weights}))
    return directory


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


def test_a_fetched_directory_opens_each_header_once(checkout, monkeypatch):
    directory = text_encoder_in_pickles(Path(FAMILY)).parent
    names = sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())
    entry = {"repo": "a/b", "revision": "a" * 40, "files": dict.fromkeys(names), "architecture": {}}
    Path("models.lock").write_text(yaml.safe_dump({TINY.model.path: entry}))
    assert faults() == []
    replace(directory / "text_encoder_2/pytorch_model-00001-of-00002.bin", POINTER)
    replace(directory / "vae/diffusion_pytorch_model.safetensors", PAGE)
    replace(directory / "vae/config.json", b"[1]")
    assert len(faults()) == 3
    opened = []
    monkeypatch.setattr(headers, "require_content", count_calls(headers.require_content, opened))
    assert len(faults()) == 3
    weights = [
        path for path in opened if path.suffix in (".safetensors", ".bin") and directory in path.parents
    ]
    assert len(weights) == len(set(weights))
    assert len(weights) == 5


def test_a_fetched_scorer_that_loading_refuses_is_named(checkout):
    """`srpo fetch` completes what models.lock names; that is not always what the scorer of the settings reads."""
    directory = Path(TINY.judge.path)
    names = sorted(path.name for path in directory.iterdir())
    entry = {"repo": "a/b", "revision": "a" * 40, "files": dict.fromkeys(names), "architecture": {}}
    Path("models.lock").write_text(yaml.safe_dump({TINY.judge.path: entry}))
    assert faults() == []
    reward = scorer("open_clip", directory)
    (fault,) = faults(TINY.model_copy(update={"rewards": [reward]}))
    assert fault == f"{directory / 'config.safetensors'} is missing: fetch it"
    with pytest.raises(ArtifactError):
        load_scorer(reward)
    entry["files"] = {"config.json": None}
    Path("models.lock").write_text(yaml.safe_dump({TINY.judge.path: entry}))
    (directory / "judge.safetensors").unlink()
    (fault,) = faults()
    assert fault == f"{directory / 'judge.safetensors'} is missing: fetch it"


def count_calls(function, calls):
    def counted(path):
        calls.append(path)
        return function(path)

    return counted


def test_a_repository_of_the_hub_is_named_however_it_is_written(checkout):
    Path("models.lock").write_text(
        yaml.safe_dump(
            {
                "models/dev": {
                    "repo": "bfl/dev",
                    "revision": "a" * 40,
                    "files": {"x": None},
                    "architecture": {},
                }
            }
        )
    )
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
