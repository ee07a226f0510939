import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from srpo_core.errors import ArtifactError
from srpo_core.models.embeddings import embeddings_file, read_embeddings, write_embeddings
from srpo_core.protocols import Condition

PROMPTS, STYLES = ["red apple", 'a "quoted" crab', "猫"], ["food", "nature", ""]


@pytest.fixture
def condition(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Condition({"prompt_embeds": torch.randn(3, 4, 8), "pooled_prompt_embeds": torch.randn(3, 5)})


def test_embeddings_are_read_as_written(condition):
    write_embeddings("train", PROMPTS, STYLES, condition)
    prompts, styles, again = read_embeddings("train")
    assert (prompts, styles) == (PROMPTS, STYLES)
    assert again.tensors.keys() == condition.tensors.keys()
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in condition.tensors.items())


def test_the_same_embeddings_give_the_same_bytes(condition, tmp_path):
    written = set()
    for _ in range(8):
        write_embeddings("train", PROMPTS, STYLES, condition)
        written.add((tmp_path / "runs/embed/train.safetensors").read_bytes())
    assert len(written) == 1


def test_the_file_is_the_one_that_safetensors_writes_itself(condition, tmp_path):
    tensors = {**condition.tensors, "mask": torch.tensor([[True], [False], [True]])}
    tensors["pooled_prompt_embeds"] = tensors["pooled_prompt_embeds"].bfloat16()
    latents = torch.randn(3, 2, 2)
    write_embeddings("train", PROMPTS, STYLES, Condition(tensors), latents)
    metadata = {"texts": json.dumps({"prompts": PROMPTS, "styles": STYLES})}
    save_file({**tensors, "latents": latents}, tmp_path / "expected", metadata)
    assert (tmp_path / "runs/embed/train.safetensors").read_bytes() == (tmp_path / "expected").read_bytes()


def test_rows_may_be_written_in_parts_and_in_any_order_and_none_may_be_missing(condition):
    with embeddings_file("train", PROMPTS, STYLES, condition) as file:
        for row in (2, 0, 1):
            file.write(row, condition[[row]].tensors)
    _, _, again = read_embeddings("train")
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in condition.tensors.items())
    with (
        pytest.raises(AssertionError, match="were not written"),
        embeddings_file("test", PROMPTS, STYLES, condition) as file,
    ):
        file.write(0, condition[[0, 1]].tensors)
    assert not Path("runs/embed/test.safetensors").exists()


def test_a_stored_bfloat16_embedding_reaches_the_model_in_float32(condition):
    stored = condition.to(torch.bfloat16)
    write_embeddings("train", PROMPTS, STYLES, stored)
    _, _, again = read_embeddings("train")
    batch = again.batch([2, 0], torch.device("cpu"))
    for name, tensor in stored.tensors.items():
        assert again.tensors[name].dtype == torch.bfloat16
        assert batch.tensors[name].dtype == torch.float32
        assert torch.equal(batch.tensors[name], tensor[[2, 0]].float())
    exact = Condition({"a": torch.randn(2, 3, dtype=torch.float64)}).batch([1], torch.device("cpu"))
    assert exact.tensors["a"].dtype == torch.float64


def test_reading_a_row_does_not_take_the_memory_of_the_file(condition):
    """256 MB are written and mapped; /proc counts the memory that this process holds in addition."""

    def held():
        lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
        return sum(int(lines[name].split()[0]) for name in ("RssAnon", "RssFile")) / 1024

    rows = [Condition({"prompt_embeds": torch.full((1, 1 << 20), float(row))}) for row in range(2)]
    write, before = [rows[number % 2] for number in range(64)], held()
    with embeddings_file("train", ["x"] * 64, [""] * 64, rows[0]) as file:
        for number, row in enumerate(write):
            file.write(number, row.tensors)
    _, _, again = read_embeddings("train")
    assert again[[3]].tensors["prompt_embeds"].unique().tolist() == [1.0]
    assert Path("runs/embed/train.safetensors").stat().st_size > 256 << 20
    assert held() - before < 100


def test_a_missing_split_names_the_stage_to_run(condition):
    with pytest.raises(
        ArtifactError, match=r"validation\.safetensors is missing: run 'dvc repro embed' first"
    ):
        read_embeddings("validation")


def test_a_damaged_file_is_named(condition, tmp_path):
    write_embeddings("train", PROMPTS, STYLES, condition)
    path = tmp_path / "runs/embed/train.safetensors"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ArtifactError, match=r"train\.safetensors is damaged"):
        read_embeddings("train")
