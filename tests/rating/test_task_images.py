"""The images of a task on the tiny family: those of the evaluation, complete after a kill, and found by name."""

import io
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from near_base import write_near_base
from PIL import Image
from rating_tasks import make_plan

from srpo_core.artifacts import BASE
from srpo_core.config import load_settings
from srpo_core.rating.task import NOISE, find_task, known_tasks, plan_contents, write_task
from srpo_core.rating.task_images import choices, make_images
from srpo_core.rating.weights import weights_digest

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = "step-000010"


@pytest.fixture
def settings(tiny_project, tmp_path):
    """The tiny preset with two steps, its embedded prompts, and a checkpoint close to the base."""
    from srpo_core.models import encode_prompts
    from srpo_core.models.embeddings import read_embeddings, write_embeddings

    Path("assets").symlink_to(ROOT / "assets")
    shutil.copytree(tiny_project / "runs", "runs")
    values = yaml.safe_load((ROOT / "profiles/tiny.yaml").read_text())
    values["generate"]["num_inference_steps"] = 2
    values["evaluate"]["seeds_per_prompt"] = 2
    Path("params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    settings = load_settings()
    prompts, styles, condition = read_embeddings("validation")
    names = [*prompts, "owl"]
    write_embeddings("test", names, ["a", "b"] * 3, encode_prompts(settings.model, names, batch_size=8))
    for split in ("train", "validation"):
        write_embeddings(split, [f"{split} {prompt}" for prompt in prompts], styles, condition)
    write_near_base(Path(CHECKPOINT))
    return settings


def pixels_of(content):
    image = Image.open(io.BytesIO(content)).convert("RGB")
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(64, 64, 3).permute(2, 0, 1)


def test_images_are_those_of_the_evaluation_and_a_killed_command_completes_them(settings):
    from srpo_core.generation.images import ImageSet, generate_pixels
    from srpo_core.models import load_base
    from srpo_core.models.embeddings import read_embeddings

    transformers = {CHECKPOINT: Path(CHECKPOINT), BASE: None}
    digests = {name: weights_digest(settings.model, path) for name, path in transformers.items()}
    assert digests[CHECKPOINT] != digests[BASE]
    choice = choices(settings)
    contents = plan_contents(
        make_plan(prompts=8, repeats=2, checks=4), choice, digests, candidate=CHECKPOINT, seed=settings.seed
    )
    task = write_task(contents)
    make_images(task, transformers, settings, keep=[BASE])
    written = {name: task.image(name) for name in task.shown_images}
    for name in list(written)[::3]:
        (task.directory / "images" / name).unlink()
    make_images(task, transformers, settings, keep=[BASE])
    assert {name: task.image(name) for name in task.shown_images} == written

    prompts, styles, condition = read_embeddings("test")
    everything = ImageSet("evaluate", prompts, styles, condition, 2, settings.seed)
    pixels = generate_pixels(
        load_base(settings.model), BASE, everything, everything.places(), generate=settings.generate
    )
    compared = 0
    for name, shown_image in task.shown_images.items():
        shown = pixels_of(written[name])
        if shown_image.model == BASE:
            row = prompts.index(contents.prompts[shown_image.prompt])
            assert (shown.int() - pixels[row * 2 + shown_image.sample].int()).abs().max() <= 1
            compared += 1
        elif shown_image.model == NOISE:
            assert shown.float().std() > 60
    assert compared >= 8
    models = {shown_image.model for shown_image in task.shown_images.values()}
    assert models == {BASE, CHECKPOINT, NOISE}


def test_the_command_makes_a_task_and_exports_it_and_repeated_it_is_the_same(settings, monkeypatch, capsys):
    from srpo_core.cli import main

    arguments = ["srpo", "rate", CHECKPOINT, "--effect", "0.39", "--raters", "6", "--export", "task.html"]
    monkeypatch.setattr(sys, "argv", arguments)
    for _ in range(2):
        with pytest.raises(SystemExit) as end:
            main.main()
        out, err = capsys.readouterr()
        assert not end.value.code, err
        (name,) = known_tasks()
        assert f"task    {name} in " in out
        assert "6 raters, " in out
    task = find_task(name)
    assert list(task.models) == [CHECKPOINT, BASE]
    html = Path("task.html").read_text()
    assert html.count("data:image/webp;base64,") == 2 * len(task.items)
    assert CHECKPOINT not in html
    monkeypatch.setattr(
        sys, "argv", ["srpo", "rate", CHECKPOINT, "--against", f"./{CHECKPOINT}/../{CHECKPOINT}"]
    )
    with pytest.raises(SystemExit) as end:
        main.main()
    assert end.value.code == 2
    assert "a model is compared with itself" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["srpo", "rate", CHECKPOINT, "--effect", "0.2"])
    with pytest.raises(SystemExit) as end:
        main.main()
    assert end.value.code == 2
    assert "there are 12: 6 test prompts with evaluate.seeds_per_prompt=2" in capsys.readouterr().err
