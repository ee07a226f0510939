"""Stage rollouts on the tiny family, and the files that it writes."""

import json
import shutil
from operator import attrgetter
from pathlib import Path

import pytest
import torch

from srpo_core.artifacts import ROLLOUTS, home
from srpo_core.config import PARAMS_FILE, patched_settings
from srpo_core.config.yaml_text import format_yaml
from srpo_core.errors import ArtifactError
from srpo_core.generation import pairs, rollouts
from srpo_core.generation.pairs import INDEX, read_pairs
from srpo_core.models.embeddings import read_embeddings
from srpo_core.runtime.dvc_yaml import argument_name, read_stages
from srpo_core.runtime.resume import fingerprint
from srpo_core.stages import rollouts as stage

ROOT = Path(__file__).resolve().parents[2]
CACHED = {"source": "cached", "num_inference_steps": 2, "cached": {"seed": 3, "images_per_prompt": 2}}


@pytest.fixture
def project(tiny_project, tmp_path, monkeypatch):
    """A directory in which embed has run on five prompts."""
    for name in ("assets", "dvc.yaml", "requirements.lock", "srpo_core", "models.lock"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(tiny_project / "runs", tmp_path / "runs", ignore=shutil.ignore_patterns("rollouts"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SRPO_HOME", str(tmp_path / ".srpo"))
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


def run(rollout=CACHED, **changes):
    """Run the stage with the settings that dvc.yaml names; DVC deletes the outputs before."""
    settings = patched_settings(ROOT, profile="tiny", patch={"train": {"rollout": rollout}, **changes})
    Path(PARAMS_FILE).write_text(format_yaml(settings.model_dump(mode="json")), encoding="utf-8")
    shutil.rmtree(ROLLOUTS, ignore_errors=True)
    keys = [*read_stages()["rollouts"].params, "resources"]
    stage.run(**{argument_name(key): attrgetter(key)(settings) for key in keys})


def written():
    return {path.name: path.read_bytes() for path in sorted(ROLLOUTS.iterdir())}


@pytest.mark.parametrize("source", ["online", "offline", "hybrid"])
def test_the_output_of_a_run_with_another_source_says_that_there_are_no_pairs(project, monkeypatch, source):
    monkeypatch.setattr(rollouts, "generate_pairs", lambda *_: pytest.fail("nothing is generated"))
    run({"source": source})
    assert {name: json.loads(data) for name, data in written().items()} == {"pairs.json": {"num_pairs": 0}}
    assert not (home() / "resume").exists()
    with pytest.raises(
        ArtifactError, match=r"pairs.json has no pairs, which train.rollout.source cached needs"
    ):
        read_pairs(["a"])


def test_the_pairs_of_all_prompts_are_written_in_shards_and_the_same_run_writes_the_same_bytes(
    project, monkeypatch
):
    texts, _, _ = read_embeddings("train")
    monkeypatch.setattr(pairs, "SHARD_BYTES", 4 * 16 * 64 * 4)  # of four images
    run()
    first = written()
    assert sorted(first) == [
        "pairs-00000.safetensors",
        "pairs-00001.safetensors",
        "pairs-00002.safetensors",
        "pairs.json",
    ]
    assert len({path.stat().st_mode for path in ROLLOUTS.iterdir()}) == 1, "who reads one file reads all"
    found = read_pairs(texts)
    assert (found.seed, found.images_per_prompt, found.num_prompts) == (3, 2, 5)
    assert [found.number(epoch) for epoch in range(5)] == [0, 1, 0, 1, 0]
    job_images = [found.image(row, number) for number in range(2) for row in range(5)]
    assert len({image.numpy().tobytes() for image in job_images}) == 10
    kept = sorted((home() / "images").iterdir())
    assert len(kept) == 10
    monkeypatch.setattr(rollouts, "images_of", lambda *_: pytest.fail("they are kept"))
    shutil.rmtree(home() / "resume")
    run()
    assert written() == first


def test_another_prompt_order_finds_each_prompt_its_own_image(project, monkeypatch):
    """Three shards, of four images each but the last."""
    texts, _, _ = read_embeddings("train")
    monkeypatch.setattr(pairs, "SHARD_BYTES", 4 * 16 * 64 * 4)
    images = [torch.full((16, 64), float(place)) for place in range(10)]
    pairs.write_pairs(images, texts, seed=0, images_per_prompt=2)
    found = read_pairs(texts)
    assert [[int(found.image(row, number)[0, 0]) for row in range(5)] for number in range(2)] == [
        [0, 1, 2, 3, 4],
        [5, 6, 7, 8, 9],
    ]


def test_pairs_of_other_prompts_and_damaged_or_missing_shards_are_refused(project):
    texts, _, _ = read_embeddings("train")
    run()
    with pytest.raises(ArtifactError, match=r"pairs of other prompts than runs/embed/train.safetensors: run"):
        read_pairs(texts[::-1])
    (shard,) = ROLLOUTS.glob("*.safetensors")
    content = shard.read_bytes()
    shard.write_bytes(content[:50])
    with pytest.raises(ArtifactError, match=r"pairs-00000.safetensors is damaged .*--force -s rollouts'"):
        read_pairs(texts)
    shard.unlink()
    with pytest.raises(ArtifactError, match=r"pairs-00000.safetensors is missing: run 'dvc repro rollouts'"):
        read_pairs(texts)
    INDEX.unlink()
    with pytest.raises(ArtifactError, match=r"pairs.json is missing: run 'dvc repro rollouts'"):
        read_pairs(texts)


def test_settings_that_change_no_pair_leave_the_stage_as_it_is_for_dvc(project):
    run({"source": "online"})

    def after(patch):
        settings = patched_settings(ROOT, profile="tiny", patch=patch)
        Path(PARAMS_FILE).write_text(format_yaml(settings.model_dump(mode="json")), encoding="utf-8")
        return fingerprint("rollouts")

    before = after({})
    same = [
        {"seed": 5},
        {"train": {"optimizer": {"learning_rate": 1e-3}, "steps": 7, "batch_size": 8}},
        {"train": {"rollout": {"cached": {"refresh_every": 2}, "share_offline": 0.1}}},
        {"control_words": {"choice": "in_turn"}},
        {"generate": {"batch_size": 3}},
        {"train": {"method": "direct_align", "direct_align": {"ratio": 0.8}}},
    ]
    assert [after(patch) == before for patch in same] == [True] * len(same)
    other = [
        {"train": {"rollout": {"cached": {"seed": 5}}}},
        {"train": {"rollout": {"num_inference_steps": 5}}},
        {"train": {"rollout": {"cached": {"batch_size": 3}}}},
    ]
    assert [after(patch) == before for patch in other] == [False] * len(other)


def test_a_killed_run_resumes_from_the_pairs_that_it_has_written(project, monkeypatch):
    run()
    whole = written()
    shutil.rmtree(home())
    off, honest = {"resources": {"kept_images_gb": 0.0}}, rollouts.images_of
    calls = []

    def dies(base, job, some):
        calls.append(len(set(some)))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return honest(base, job, some)

    small = {"rollout": {**CACHED, "cached": {**CACHED["cached"], "batch_size": 4}}, **off}
    monkeypatch.setattr(rollouts, "images_of", dies)
    with pytest.raises(KeyboardInterrupt):
        run(**small)
    run(**small)
    assert calls == [4, 4, 4, 2]
    resumed = written()
    shutil.rmtree(home())
    run(**small)
    assert written() == resumed
    assert resumed.keys() == whole.keys()
