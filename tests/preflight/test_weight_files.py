"""`srpo doctor`, and `srpo align` before a run, on weights that are not what their names say."""

import shutil
from pathlib import Path

import pytest
from spoiled_weights import (
    FAMILY,
    TINY,
    faults,
    load_encoders,
    replace,
    text_encoder_in_pickles,
    with_model,
    write_lock,
)
from wrong_files import PAGE, POINTER

from srpo_core.errors import ArtifactError, DataError
from srpo_core.models import load_base
from srpo_core.preflight.disk import count_weights
from srpo_core.preflight.weight_files import require_readable_weights
from srpo_core.scorers import load_scorer
from srpo_core.weights import headers


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


def test_a_graph_without_a_stage_that_reads_the_base_needs_no_weights(checkout):
    shutil.rmtree(FAMILY)
    with pytest.raises(DataError, match=r"model\.path: assets/tiny/family/base is missing: check the path"):
        require_readable_weights(TINY)
    Path("dvc.yaml").write_text("stages: {ingest: {cmd: x, deps: [a], outs: [b]}}")
    require_readable_weights(TINY)


def test_weights_that_dvc_will_fetch_are_not_missing(checkout):
    Path("mine.dvc").write_text("outs: []\n")
    assert faults(with_model("mine")) == []


def test_a_fetched_directory_opens_each_header_once(checkout, monkeypatch):
    directory = text_encoder_in_pickles(Path(FAMILY)).parent
    names = sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())
    write_lock(TINY.model.path, names)
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


def count_calls(function, calls):
    def counted(path):
        calls.append(path)
        return function(path)

    return counted
