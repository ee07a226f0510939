"""Images of base and champion that later runs reuse, on the tiny family."""

import logging
import os
import shutil
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
import stage_deps
import torch

from srpo_core.config import GenerateSettings, load_settings
from srpo_core.generation import batches, keys
from srpo_core.generation.batches import generate_batches
from srpo_core.generation.images import ImageSet
from srpo_core.generation.job import GenerationJob
from srpo_core.generation.kept_images import CODE, KeptImages
from srpo_core.models.embeddings import read_embeddings
from srpo_core.runtime.kept_files import KeptFiles, remove_oldest
from srpo_core.runtime.shared_files import Location
from srpo_core.scorers.metrics import MetricContext

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


@pytest.fixture
def settings():
    return load_settings(ROOT / "profiles/tiny.yaml")


@pytest.fixture
def job(settings, tiny_project, tmp_path, monkeypatch):
    """Three prompts in two batches, by the base."""
    monkeypatch.chdir(tiny_project)
    monkeypatch.setenv("SRPO_HOME", str(tmp_path / "home"))
    prompts, styles, condition = read_embeddings("validation")
    return GenerationJob(
        "base",
        settings.model,
        None,
        ImageSet("evaluate", prompts[:3], styles[:3], condition[:3], 1, 0),
        GenerateSettings(
            num_inference_steps=1,
            guidance_scale=3.5,
            batch_size=2,
            autocast=False,
            tf32=False,
            decode="whole",
        ),
        ["saturation"],
        MetricContext(settings.rewards, settings.judge, settings.control_words),
        keep=True,
    )


@pytest.fixture
def run(settings, monkeypatch):
    """Return a function that runs a job as one run does; it returns pixels, figures, and how many batches were generated."""
    generated, honest = [], batches.generate_set
    monkeypatch.setattr(
        batches, "generate_set", lambda *args, **options: generated.append(1) or honest(*args, **options)
    )

    def run(job, **resources):
        generated.clear()
        found = generate_batches(job, settings.resources.model_copy(update=resources))
        pixels = torch.cat([images.pixels for _, images in found])
        figures = found.figures()
        found.discard()
        return pixels, figures, len(generated)

    return run


def entries(tmp_path):
    return sorted((tmp_path / "home/images").glob("*"))


def test_a_later_run_measures_the_same_images_with_other_metrics_and_does_not_load_the_model(
    job, run, monkeypatch
):
    pixels, figures, generated = run(job)
    assert generated == 2
    monkeypatch.setattr(batches.LoadedBase, "as_model", lambda *_: pytest.fail("the model is not needed"))
    again, others, generated = run(replace(job, metrics=["saturation", "contrast"]))
    assert torch.equal(again, pixels)
    assert torch.equal(others["saturation"], figures["saturation"])
    assert set(others) == {"saturation", "contrast"}
    assert generated == 0


def test_everything_that_determines_the_pixels_and_no_metric_changes_the_name(job, tmp_path, monkeypatch):
    """Wherever the weights are stored, and whatever measures the images, the name is the same."""
    weights = tmp_path / "weights"
    shutil.copytree(ROOT / "assets/tiny/family/base", tmp_path / "moved")
    shutil.copytree(ROOT / "assets/tiny/family/base/transformer", weights)

    def names(one):
        resources = load_settings(ROOT / "profiles/tiny.yaml").resources
        kept = batches._kept_images(one, resources)
        return {kept._name(one.batch(number), CPU) for number in range(one.num_batches)}

    own, images = names(job), job.image_set
    moved = job.model.model_copy(update={"path": str(tmp_path / "moved")})
    assert names(replace(job, model=moved, metrics=[], name="champion")) == own
    steered = replace(images.condition, tensors={k: v + 1 for k, v in images.condition.tensors.items()})
    changed = [
        replace(job, model=job.model.model_copy(update={"height": 128})),
        replace(job, transformer=weights),
        *(
            replace(job, generate=job.generate.model_copy(update=one))
            for one in (
                {"num_inference_steps": 2},
                {"guidance_scale": 1.0},
                {"batch_size": 1},
                {"autocast": True},
            )
        ),
        *(
            replace(job, image_set=replace(images, **one))
            for one in (
                {"purpose": "select"},
                {"prompts": [f"{prompt}s" for prompt in images.prompts]},
                {"condition": steered},
                {"seeds_per_prompt": 2},
                {"seed": 1},
            )
        ),
    ]
    seen = [own, *(names(one) for one in changed)]
    content = bytearray((weights / "config.json").read_bytes()) + b"\n"
    (weights / "config.json").write_bytes(content)
    seen.append(names(replace(job, transformer=weights)))
    with monkeypatch.context() as patch:
        patch.setattr(keys, "code_digest", lambda _: "other code or libraries")
        seen.append(names(job))
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 7)
        seen.append(names(job))
    different = [one for one in seen if not one & own]
    assert len(different) == len(seen) - 1
    assert len(set().union(*different)) == sum(map(len, different)), "no two share a name"


def test_the_hashed_code_is_what_the_generating_code_imports():
    """Scorers measure pixels, and the code of `WITHOUT_EFFECT` changes no result."""
    modules = stage_deps.modules_of(
        "srpo_core.generation.images", "srpo_core.models", without={"srpo_core.scorers"}
    )
    package = ROOT / "srpo_core"
    hashed = {
        str(file.relative_to(ROOT))
        for entry in CODE
        for file in ((package / entry).rglob("*.py") if (package / entry).is_dir() else [package / entry])
    }
    assert {stage_deps.file_of(module) for module in modules} <= hashed
    needed = {stage_deps.file_of(module).split("/")[1] for module in modules}
    assert {entry.split("/")[0] for entry in CODE} == needed, "no entry is superfluous"


def test_a_changed_file_of_the_code_or_version_of_a_library_changes_the_digest(tmp_path, monkeypatch):
    before = keys.code_digest.__wrapped__(CODE)
    for library in ("torch", "diffusers", "transformers", "peft", "numpy"):
        with monkeypatch.context() as patch:
            patch.setattr(
                keys, "version", lambda name, other=library: "0" if name == other else version(name)
            )
            assert keys.code_digest.__wrapped__(CODE) != before, library
    shutil.copytree(ROOT / "srpo_core", tmp_path / "srpo_core")
    monkeypatch.setattr(keys.srpo_core, "__file__", str(tmp_path / "srpo_core/__init__.py"))
    assert keys.code_digest.__wrapped__(CODE) == before
    with (tmp_path / "srpo_core/models/flux.py").open("a") as file:
        file.write("# a change\n")
    assert keys.code_digest.__wrapped__(CODE) != before


@pytest.mark.parametrize("damage", [lambda data: data[:-1] + b"?", lambda data: data[:40], lambda data: b""])
def test_damaged_images_are_reported_and_generated_again(job, run, tmp_path, caplog, damage):
    pixels, _, _ = run(job)
    file = entries(tmp_path)[0]
    file.write_bytes(damage(file.read_bytes()))
    with caplog.at_level(logging.WARNING):
        again, _, generated = run(job)
    assert generated == 1
    assert torch.equal(again, pixels)
    assert f"{file} is damaged: its images are generated again" in caplog.text
    assert run(job)[2] == 0


def test_only_images_of_models_that_later_runs_share_are_kept_and_a_limit_of_0_keeps_none(job, run, tmp_path):
    run(replace(job, keep=False))
    run(job, kept_images_gb=0)
    assert entries(tmp_path) == []


def test_beyond_the_limit_the_images_of_earlier_runs_are_removed(job, run, tmp_path):
    run(job)
    full = sum(file.stat().st_size for file in entries(tmp_path)) / 1e9
    other = replace(job, image_set=replace(job.image_set, seed=1))
    assert run(other, kept_images_gb=full)[2] == 2
    assert run(other, kept_images_gb=full)[2] == 0
    assert run(job, kept_images_gb=full)[2] == 2


def test_removal_counts_what_a_killed_process_left_and_survives_another_that_removes_too(
    tmp_path, monkeypatch
):
    for number, name in enumerate([".old.part", "b", "c"]):
        (tmp_path / name).write_bytes(bytes(10))
        os.utime(tmp_path / name, ns=(number, number))
    remove_oldest(tmp_path, 20)
    assert {file.name for file in tmp_path.iterdir()} == {"b", "c"}
    (tmp_path / ".new.part").write_bytes(bytes(10))  # another process is writing it
    remove_oldest(tmp_path, 20)
    assert {file.name for file in tmp_path.iterdir()} == {".new.part", "c"}
    remove_oldest(tmp_path, 0)
    assert {file.name for file in tmp_path.iterdir()} == {".new.part"}
    (tmp_path / ".new.part").rename(tmp_path / "b")
    listed = list(tmp_path.iterdir())
    (tmp_path / "b").unlink()
    monkeypatch.setattr(Path, "iterdir", lambda _: iter(listed))
    remove_oldest(tmp_path, 0)
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


def test_reading_images_makes_them_the_last_to_be_removed(job, tmp_path):
    kept = KeptImages(KeptFiles(Location.of(tmp_path / "images"), 1e9), "source")
    parts = [job.batch(0), job.batch(1)]
    for number, part in enumerate(parts):
        kept.write(part, CPU, torch.full((len(part), 3, 8, 8), number, dtype=torch.uint8))
    for file in (tmp_path / "images").iterdir():
        os.utime(file, ns=(1, 1))
    kept.read(parts[0], CPU)
    remove_oldest(tmp_path / "images", max(file.stat().st_size for file in (tmp_path / "images").iterdir()))
    assert kept.read(parts[0], CPU).unique().tolist() == [0]
    assert kept.read(parts[1], CPU) is None


def test_tasks_of_other_machines_reuse_images_below_the_shared_location(job, run, monkeypatch):
    monkeypatch.setenv("SRPO_SHARED", "memory://test-kept-images")
    pixels, _, generated = run(job)
    assert generated == 2
    again, _, generated = run(job)
    assert generated == 0
    assert torch.equal(again, pixels)
