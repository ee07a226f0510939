"""Make rating tasks with synthetic images: their upper half shows quality as a grey, the lower half the prompt as a colour."""

import hashlib
from pathlib import Path

import torch

from srpo_core.artifacts import replacing, write_json
from srpo_core.rating.power import Plan
from srpo_core.rating.task import (
    IMAGES,
    NOISE,
    TASK_FILE,
    Choice,
    Task,
    TaskFile,
    directory_of,
    plan_contents,
    task_id,
    write_task,
)
from srpo_core.rating.task_images import to_webp

PROMPTS = [f"subject {number}" for number in range(20)]
STYLES = ["nature", "food"] * 10
SIZE = 64
QUALITY = {"base": 90, "tiny-7": 170, "tiny-8": 130}  # greys


def colour_of(prompt: str) -> list[int]:
    """Return the colour that stands for a prompt."""
    return list(hashlib.sha256(prompt.encode()).digest()[:3])


def make_plan(protocol="paired", *, prompts=6, repeats=2, checks=4, raters=2) -> Plan:
    """A plan of the given size; what it says about power is of no use."""
    return Plan(protocol, 0.3, 0.8, 0.95, raters, prompts, repeats, checks, 0.8, 1.0)


def make_task(
    protocol="paired", *, models=("tiny-7", "base"), seed=0, samples=2, secret="of tests", **size
) -> Task:
    """Write a task with its images to the home directory. size: see `make_plan`.

    secret: of the task, so that order and sides are the same in every run; None for a random one, as users have.
    """
    choice = Choice(PROMPTS, STYLES, samples)
    digests = {name: hashlib.sha256(name.encode()).hexdigest() for name in models}
    contents = plan_contents(make_plan(protocol, **size), choice, digests, candidate=models[0], seed=seed)
    path = directory_of(task_id(contents)) / TASK_FILE
    if secret is not None and not path.exists():
        write_json(path, TaskFile(format=1, planned=contents, secret=secret).model_dump(mode="json"))
    task = write_task(contents)
    for name, shown_image in task.shown_images.items():
        with replacing(task.directory / IMAGES / name) as partial:
            partial.write_bytes(to_webp(draw(task, shown_image)))
    return task


def draw(task: Task, shown_image) -> torch.Tensor:
    """Draw an image (3, S, S) in 8 bits."""
    generator = torch.Generator().manual_seed(shown_image.prompt * 100 + shown_image.sample)
    if shown_image.model == NOISE:
        return torch.randint(0, 256, (3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    image = torch.empty(3, SIZE, SIZE, dtype=torch.uint8)
    image[:, : SIZE // 2] = QUALITY[shown_image.model] + int(torch.randint(-9, 10, (), generator=generator))
    image[:, SIZE // 2 :] = torch.tensor(
        colour_of(task.planned.prompts[shown_image.prompt]), dtype=torch.uint8
    )[:, None, None]
    return image


def folder(task: Task) -> Path:
    """Return the directory of a task's images."""
    return task.directory / IMAGES
