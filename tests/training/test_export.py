import json
import time
from dataclasses import replace
from itertools import count

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from srpo_core.config import EmaSettings
from srpo_core.errors import ArtifactError
from srpo_core.models import load_base
from srpo_core.runtime.shared_files import Location
from srpo_core.training import export
from srpo_core.training.batch import read_training_prompts
from srpo_core.training.checkpoint import AVERAGES, Checkpoint, newest_checkpoint
from srpo_core.training.samples import generate_samples, png_row
from srpo_core.training.worker import Worker
from srpo_core.weights.shards import read_whole

WORDS = {"prompts": 5, "wanted": {"Ink": 0}, "unwanted": {"3D": 3}}


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    """Return a directory for the stage's outputs."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here/runs/train"


def test_the_outputs_are_every_checkpoint_samples_and_the_metrics_of_every_step(job, monkeypatch, tmp_path):
    """They are averages, which the samples show too, and are verified; the state of the optimizer is not read."""
    import torch

    job = replace(job, train=job.train.model_copy(update={"ema": EmaSettings(decay=0.9, start=0)}))
    Worker(job, rank=0, world=1, device=torch.device("cpu")).run()
    losses = [row["loss"] for row in newest_checkpoint(job.state, count(2, 2)).metrics]
    states = list((job.state.path / "step-000004/resume").rglob("*.safetensors"))
    assert states
    for state in states:
        state.write_bytes(b"damaged")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in ("assets", "runs/embed"):
        (tmp_path / "here" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "here" / name).symlink_to(job.inputs.path / name)
    export.export(job, WORDS)
    assert {path.name for path in (tmp_path / "here/runs/train/checkpoints").iterdir()} == {
        "step-000002",
        "step-000004",
    }
    assert len(list((tmp_path / "here/runs/train/samples").glob("*.png"))) == 2
    exported = tmp_path / "here/runs/train/checkpoints/step-000004"
    averages = read_whole(job.state.path / "step-000004" / AVERAGES)
    saved = load_file(exported / "diffusion_pytorch_model.safetensors")
    assert averages.keys() <= saved.keys()
    assert all(torch.equal(saved[name], tensor) for name, tensor in averages.items())
    model = load_base(job.model, exported)
    images = generate_samples(model, job, read_training_prompts(real_images=False), torch.device("cpu"))
    assert png_row(images) == (tmp_path / "here/runs/train/samples/step-000004.png").read_bytes()
    left = [str(path) for path in (tmp_path / "here/runs").rglob("*")]
    assert not [path for path in left if "optimizer" in path or "resume" in path]
    for path in (tmp_path / "here/runs").rglob("*.safetensors"):
        with safe_open(path, "pt") as file:
            assert not [name for name in file.keys() if "exp_avg" in name]  # noqa: SIM118  # not a mapping
    table = (tmp_path / "here/runs/train/log/plots/metrics/train/loss.tsv").read_text().splitlines()
    assert [line.split("\t") for line in table[1:]] == [
        [str(i), str(loss)] for i, loss in enumerate(losses, 1)
    ]
    (weights,) = (job.state.path / "step-000002" / AVERAGES).glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(ArtifactError, match=r"damaged: ema/.* does not have its digest: delete it"):
        export.export(job, WORDS)


def test_a_damaged_checkpoint_is_not_exported(job, outputs):
    (job.state.path / "step-000002").mkdir(parents=True)
    state = {"step": 2, "metrics": [], "sha256": {"gone": "0"}}
    (job.state.path / "step-000002/state.json").write_text(json.dumps(state))
    with pytest.raises(
        ArtifactError, match=r"step-000002 is damaged: .*: delete it, and the same command trains"
    ):
        export.export(job, WORDS)
    assert not (outputs / "checkpoints").exists()


def test_the_metrics_files_do_not_depend_on_time(outputs):
    checkpoint = Checkpoint(Location.of(outputs), 2, [{"loss": 1.0}, {"loss": 0.5}], [], {}, resumable=True)
    contents = []
    for _ in range(2):
        export.write_metrics(checkpoint)
        contents.append({p.name: p.read_bytes() for p in (outputs / "log").rglob("*") if p.is_file()})
        time.sleep(1.1)  # a timestamp would change
    assert contents[0] == contents[1]
    assert set(contents[0]) == {"metrics.json", "loss.tsv"}
