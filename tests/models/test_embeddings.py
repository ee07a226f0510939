import pytest
import torch

from srpo_core.errors import ArtifactError
from srpo_core.models.embeddings import read_embeddings, write_embeddings
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
