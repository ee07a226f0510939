"""A checkout with the weights of the demo to spoil, and what `srpo doctor` finds in it."""

import json
from pathlib import Path

import yaml

from srpo_core.config import load_settings
from srpo_core.models import base_entry
from srpo_core.models.loading import load_text_encoders
from srpo_core.preflight.weight_files import check_weights

ROOT = Path(__file__).resolve().parents[1]
TINY = load_settings(ROOT / "profiles/tiny.yaml")
FAMILY = "assets/tiny/family"


def replace(path, content):
    path.unlink()
    path.write_bytes(content)


def faults(settings=TINY):
    return [detail for good, detail in check_weights(settings) if not good]


def load_encoders(model):
    return load_text_encoders(base_entry(model), model)


def with_model(path):
    return TINY.model_copy(update={"model": TINY.model.model_copy(update={"path": path})})


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


def write_lock(path, files, repo="a/b"):
    """Write a models.lock with one directory."""
    entry = {"repo": repo, "revision": "a" * 40, "files": dict.fromkeys(files), "architecture": {}}
    Path("models.lock").write_text(yaml.safe_dump({path: entry}))
