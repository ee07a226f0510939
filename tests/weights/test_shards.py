"""Shards that are cut or something else than their names say."""

import pytest
import torch
from safetensors.torch import save_file
from wrong_files import PAGE, POINTER

from srpo_core.errors import ArtifactError
from srpo_core.weights.shards import join_shards, read_shards, read_whole


@pytest.mark.parametrize("content", [POINTER, PAGE, b"", None], ids=["pointer", "page", "empty", "cut"])
def test_a_shard_that_is_no_intact_file_is_named_in_one_line_without_a_trace(tmp_path, capfd, content):
    save_file({"a": torch.ones(2)}, tmp_path / "one.safetensors")
    save_file({"b": torch.ones(300)}, tmp_path / "two.safetensors")
    assert read_whole(tmp_path)["b"].sum() == 300
    whole = (tmp_path / "two.safetensors").read_bytes()
    (tmp_path / "two.safetensors").write_bytes(whole[:-100] if content is None else content)
    for read in (
        lambda: read_shards(tmp_path, {"a": torch.zeros(2)}),
        lambda: read_whole(tmp_path),
        lambda: join_shards(tmp_path, tmp_path / "out/joined.safetensors"),
    ):
        with pytest.raises(
            ArtifactError, match=r"cannot be read as weights: \S+two\.safetensors: "
        ) as caught:
            read()
        assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""
