"""Small intact files of each kind."""

import json

import pytest
import torch
from safetensors.torch import save_file


@pytest.fixture
def intact(tmp_path):
    """A directory with one intact file of each kind."""
    from gguf import GGUFWriter

    save_file({"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2)}, tmp_path / "m.safetensors")
    torch.save({"state_dict": {"a": torch.ones(2)}}, tmp_path / "m.pt")
    torch.save({"a": torch.ones(2)}, tmp_path / "m.bin", _use_new_zipfile_serialization=False)
    writer = GGUFWriter(tmp_path / "m.gguf", "flux")
    writer.add_tensor("a", torch.arange(64.0).reshape(2, 32).numpy())
    writer.add_array("some.names", ["x"] * 20)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "Ä"}), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    return tmp_path
