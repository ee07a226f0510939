"""Data without pairs, from the files of a user to trained weights: a file of prompts, and a directory of captioned images.

The settings are those of the command that `srpo data` prints. The worker runs in this process, without Ray.
"""

import json
import math
import shlex
import tarfile
from inspect import signature
from operator import attrgetter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from srpo_core import artifacts
from srpo_core.cli.options import parse_changes
from srpo_core.config import NULL, PARAMS_FILE, patched, patched_settings
from srpo_core.config.yaml_text import format_yaml
from srpo_core.data.tables import read_images, read_prompts, to_tensor
from srpo_core.models import encode_image_batches
from srpo_core.models.embeddings import read_embeddings, read_latents
from srpo_core.preflight.data_needs import require_data
from srpo_core.runtime.dvc_yaml import argument_name, read_stages
from srpo_core.stages import check_reward, embed, ingest, rollouts, train
from srpo_core.training.worker import Worker
from srpo_core.workspace import data_versions
from srpo_core.workspace.data_settings import next_command

pytestmark = pytest.mark.nightly  # a minute: two runs from the files to trained weights
ROOT = Path(__file__).resolve().parents[2]
HPD = ROOT / "assets/tiny/hpd"
# as few prompts and steps as train something; no image is generated to evaluate with
SHORT = {
    "train": {
        "steps": 2,
        "batch_size": 4,
        "checkpoint_every": 2,
        "sample_prompts": 1,
        "rollout": {"num_inference_steps": 3},
        "early_stop": NULL,
    },
    "select": {"num_prompts": 2},
}


def preferred(split):
    """Return the preferred image of the first record of each prompt of the tiny data."""
    records = json.loads((HPD / f"{split}.json").read_text())
    with tarfile.open(HPD / f"{split}.tar") as archive:
        found = {}
        for one in records:
            names, ranks = (
                (one["file_path"], [1 - p for p in one["human_preference"]])
                if split == "train"
                else (one["image_path"], one["rank"])
            )
            if one["prompt"] not in found:
                best = names[ranks.index(min(ranks))]
                found[one["prompt"]] = archive.extractfile(best).read()
        return found


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """Return a function that makes a version of a source, and returns the settings that its `next` command sets."""
    for name in ("assets", "dvc.yaml", "requirements.lock", "models.lock", "srpo_core"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)

    def make(source, format_name):
        data_versions.collect(source, tmp_path / "data/mine", format_name)
        words = shlex.split(next_command("data/mine/0123", "mine", format_name, []))
        given = parse_changes([word for word in words[4:] if word != "--set"])
        if format_name == "images":
            given = patched(given, {"train": {"rollout": {"source": "offline"}}})
        return patched_settings(ROOT, profile="tiny", patch=patched(SHORT, given))

    return make


def without_real_images(settings):
    """Drop the metric that compares with real images, and its rule, as docs/data.md asks for data without images."""
    rules = {name: rule for name, rule in settings.gate.rules.items() if rule.metric != "kid"}
    metrics = [name for name in settings.evaluate.metrics if name != "kid"]
    changes = {
        "gate": settings.gate.model_copy(update={"rules": rules}),
        "evaluate": settings.evaluate.model_copy(update={"metrics": metrics}),
    }
    return settings.model_copy(update=changes)


def run(stage, name, settings):
    """Run a stage with the settings that dvc.yaml names, and `resources` where it takes them."""
    params = [*read_stages(ROOT)[name].params]
    params += ["resources"] * ("resources" in signature(stage.run).parameters)
    stage.run(**{argument_name(key): attrgetter(key)(settings) for key in params})


def train_here(settings, monkeypatch):
    """Run the stages up to training; the one worker runs in this process."""
    require_data(settings)
    Path(PARAMS_FILE).write_text(format_yaml(settings.model_dump(mode="json")), encoding="utf-8")
    for stage, name in (
        (ingest, "ingest"),
        (embed, "embed"),
        (rollouts, "rollouts"),
        (check_reward, "check_reward"),
    ):
        run(stage, name, settings)
    monkeypatch.setattr(
        train, "fit", lambda job: Worker(job, rank=0, world=1, device=torch.device("cpu")).run()
    )
    run(train, "train", settings)


def require_trained(settings):
    """Require that both steps were finite and moved the weights that are exported."""
    outcome = artifacts.read_json(artifacts.TRAIN_OUTCOME)
    assert (outcome["steps"], outcome["stopped_early"]) == (2, None)
    rows = [
        line.split("\t")
        for path in (artifacts.TRAIN_LOG / "plots/metrics").rglob("*.tsv")
        for line in path.read_text().splitlines()[1:]
    ]
    assert len(rows) >= 4
    assert all(math.isfinite(float(row[-1])) for row in rows)
    (exported,) = artifacts.step_directory(2).glob("*.safetensors")
    (base,) = (Path(settings.model.path) / "transformer").glob("*.safetensors")
    before, after = load_file(base), load_file(exported)
    moved = [name for name, tensor in after.items() if not torch.equal(tensor, before[name].to(tensor.dtype))]
    assert len(moved) > len(before) / 2


def test_a_file_of_prompts_is_trained_on(settings, monkeypatch, tmp_path):
    prompts = list(preferred("train"))[:40]
    (tmp_path / "mine.txt").write_text("\n".join(prompts), encoding="utf-8")
    own = without_real_images(settings(tmp_path / "mine.txt", "prompts"))
    train_here(own, monkeypatch)
    texts, _, _ = read_embeddings("train")
    assert len(texts) == 8
    assert set(texts) <= {one.text for one in read_prompts("train")} < set(prompts)
    require_trained(own)


def test_a_directory_of_images_with_captions_is_trained_on_offline(settings, monkeypatch, tmp_path):
    for split in ("train", "test"):
        (tmp_path / "photos" / split).mkdir(parents=True)
        for number, (prompt, image) in enumerate(list(preferred(split).items())[:12]):
            (tmp_path / "photos" / split / f"{number:02}.webp").write_bytes(image)
            (tmp_path / "photos" / split / f"{number:02}.txt").write_text(prompt, encoding="utf-8")
    own = settings(tmp_path / "photos", "images")
    train_here(own, monkeypatch)
    texts, _, _ = read_embeddings("train")
    paths = embed.preferred_images(texts)
    pixels = [to_tensor(image) for image in read_images(paths).values()]
    (latents,) = encode_image_batches(own.model, [torch.cat(pixels)], device=torch.device("cpu"))
    assert len(texts) == 8
    assert torch.allclose(read_latents("train"), latents, atol=1e-5)
    require_trained(own)
