"""A rating task: the images that people compare or grade, planned before anyone rates, and its files.

A task is a directory `.srpo/ratings/<task>`: task.json, images/, and answers.sqlite while people rate. Its name is a digest of
the planned part of task.json. The names of items and images are keyed by a secret of the task, so they say nothing about the
models or about the kind of an item.
"""

import hashlib
import hmac
import json
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from srpo_core.artifacts import home, write_json
from srpo_core.errors import ArtifactError, ConfigError, DataError
from srpo_core.prompts import balanced_order, normal_form
from srpo_core.randomness import keyed_integer, keyed_order
from srpo_core.rating.power import Plan
from srpo_core.rating.records import CHECK, OVERALL, PAIRED, PLAIN, REPEAT, Kind, Protocol

DIGITS: Final = 12
TASK_FILE: Final = "task.json"
IMAGES: Final = "images"
NOISE: Final = "noise"  # the image of a check that is no image
PHASES: Final = 3  # parts of a rater's order: a repeat comes in the last one, what it repeats in the first
_ALTERNATING: Final = 2


class ShownImage(BaseModel):
    """An image: of a model, of the prompt with this index in the task, and its number among those; model `NOISE`: none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    prompt: int
    sample: int


class Planned(BaseModel):
    """An item before it has a name.

    first, second: models as in `Rating`. repeats: number of the item whose images it shows again. expected: the right answer of a
    check, on `dimension`. shown: the image of `first` and, of a pair, that of `second`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    prompt: int
    sample: int
    first: str
    second: str
    repeats: int | None
    expected: str
    dimension: str
    shown: tuple[ShownImage, ...]


class Item(BaseModel):
    """An item of a task, as it is rated.

    files: names of the images, that of `first` before that of `second`. first_is_a: which of the two is called "a" where the
    rater's side is drawn. phase: see `srpo_core/rating/presentation.py`. The other fields are those of `Rating`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    kind: Kind
    prompt: str
    style: str
    sample: int
    first: str
    second: str
    repeats: str
    expected: str
    dimension: str
    files: tuple[str, ...]
    first_is_a: bool
    phase: int


class Contents(BaseModel):
    """The planned part of a task, whose digest names the task.

    models: digest of the weights by name. candidate: the model that is judged. prompts, styles: of the prompts that are shown.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    protocol: Protocol
    models: dict[str, str]
    candidate: str
    prompts: tuple[str, ...]
    styles: tuple[str, ...]
    seed: int
    plan: dict[str, Any]
    items: tuple[Planned, ...]


class TaskFile(BaseModel):
    """The content of task.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1]
    planned: Contents
    secret: str


@dataclass(frozen=True)
class Task:
    """A task on disk.

    items: by name. shown_images: what each file of images/ shows. token: the part of the page's address that lets a rater in.
    """

    id: str
    directory: Path
    planned: Contents
    items: dict[str, Item]
    shown_images: dict[str, ShownImage]
    token: str

    @property
    def protocol(self) -> Protocol:
        """Whether pairs are compared or images graded."""
        return self.planned.protocol

    @property
    def models(self) -> dict[str, str]:
        """Digest of the weights by name, the model that is judged first."""
        return {self.planned.candidate: "", **self.planned.models}

    @property
    def num_raters(self) -> int:
        """Number of raters that the task is planned for."""
        return int(self.planned.plan["raters"])

    def image(self, name: str) -> bytes:
        """Read one of the images. Raises `ArtifactError` if it is missing."""
        path = self.directory / IMAGES / name
        if not path.is_file():
            raise ArtifactError(f"{path} is missing: repeat the 'srpo rate' command that made the task")
        return path.read_bytes()


@dataclass(frozen=True)
class Choice:
    """The images to choose from: test prompts with their styles, and the number of images of each."""

    prompts: Sequence[str]
    styles: Sequence[str]
    samples: int

    def first(self, count: int, seed: int) -> list[tuple[int, int]]:
        """Return `count` of (prompt, sample) with all styles in proportion: first one image of each prompt, then the next.

        Raises:
            ConfigError: there are not so many.
        """
        most = len(self.prompts) * self.samples
        if count > most:
            raise ConfigError(
                f"the task needs {count} images of each model, and there are {most}: {len(self.prompts)} test prompts with "
                f"evaluate.seeds_per_prompt={self.samples}; give a larger --effect, more --raters, or more test prompts"
            )
        order = balanced_order(self.prompts, self.styles, seed)
        return [(order[number % len(order)], number // len(order)) for number in range(count)]


def plan_contents(
    plan: Plan, choice: Choice, models: dict[str, str], *, candidate: str, seed: int
) -> Contents:
    """Plan the items of a task: plain ones, repeats and checks.

    models: digest of the weights by name, `candidate` among them. Each is paired with each other one, so that no image comes more
    often than another, which would tell the candidate; or all of them are graded.

    Raises:
        ConfigError: there are too few images, or all prompts are the same.
    """
    units = choice.first(plan.prompts, seed)
    rows = sorted({row for row, _ in units})
    prompts = tuple(choice.prompts[row] for row in rows)
    numbered = [(rows.index(row), sample) for row, sample in units]
    if len({normal_form(prompt) for prompt in prompts}) < _ALTERNATING:
        raise ConfigError("a task needs at least 2 different test prompts: set evaluate.num_prompts")
    names = [candidate, *(name for name in models if name != candidate)]
    sets = list(combinations(names, 2 if plan.protocol == PAIRED else 1))
    plain = [_plain(shown, *unit) for unit in numbered for shown in sets]
    chosen = _in_turn(keyed_order(len(plain), seed, "rating", "repeats"), len(sets))[: plan.repeats]
    repeats = [plain[number].model_copy(update={"kind": REPEAT, "repeats": number}) for number in chosen]
    checks = [
        _check(number, sets[number // 2 % len(sets)], numbered, prompts, seed)
        for number in range(plan.checks)
    ]
    return Contents(
        protocol="paired" if plan.protocol == PAIRED else "levels",
        models=models,
        candidate=candidate,
        prompts=prompts,
        styles=tuple(choice.styles[row] for row in rows),
        seed=seed,
        plan=asdict(plan),
        items=(*plain, *repeats, *checks),
    )


def _in_turn(order: Sequence[int], sets: int) -> list[int]:
    """Sort the numbers of plain items so that the sets of models take turns; of one set, they stay in order."""
    turns: Counter[int] = Counter()
    ranked = []
    for number in order:
        turns[number % sets] += 1
        ranked.append((turns[number % sets], number))
    return [number for _, number in sorted(ranked, key=lambda one: one[0])]


def _plain(models: Sequence[str], prompt: int, sample: int) -> Planned:
    return Planned(
        kind=PLAIN,
        prompt=prompt,
        sample=sample,
        first=models[0],
        second=models[1] if len(models) > 1 else "",
        repeats=None,
        expected="",
        dimension="",
        shown=tuple(ShownImage(model=model, prompt=prompt, sample=sample) for model in models),
    )


def _check(
    number: int,
    models: Sequence[str],
    units: Sequence[tuple[int, int]],
    prompts: Sequence[str],
    seed: int,
) -> Planned:
    """Make an item with an obvious answer: one image is noise, or of another prompt, alternately."""
    prompt, sample = units[keyed_integer(0, len(units) - 1, seed, "rating", "check", number)]
    strangers = [unit for unit in units if normal_form(prompts[unit[0]]) != normal_form(prompts[prompt])]
    stranger = strangers[keyed_integer(0, len(strangers) - 1, seed, "rating", "stranger", number)]
    wrong = len(models) - 1 if number % 4 in (0, 3) else 0  # of both models as often, and of both kinds
    shown = [ShownImage(model=model, prompt=prompt, sample=sample) for model in models]
    is_noise = number % _ALTERNATING == 0
    shown[wrong] = (
        ShownImage(model=NOISE, prompt=number, sample=0)
        if is_noise
        else ShownImage(model=models[wrong], prompt=stranger[0], sample=stranger[1])
    )
    paired = len(models) > 1
    expected = ("second", "first")[wrong] if paired else "fail"
    dimension = OVERALL if paired or is_noise else "text_alignment"
    plain = _plain(models, prompt, sample)
    return plain.model_copy(
        update={"kind": CHECK, "expected": expected, "dimension": dimension, "shown": tuple(shown)}
    )


def task_id(planned: Contents) -> str:
    """Return the digest that names a task."""
    text = json.dumps(planned.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def directory_of(task: str) -> Path:
    """Return the directory of a task, whether it exists or not."""
    return home() / "ratings" / task


def write_task(planned: Contents) -> Task:
    """Write task.json, unless the task exists; its answers then go on."""
    directory = directory_of(task_id(planned))
    if not (directory / TASK_FILE).exists():
        made = TaskFile(format=1, planned=planned, secret=secrets.token_hex(16))
        write_json(directory / TASK_FILE, made.model_dump(mode="json"))
    return read_task(directory)


def known_tasks() -> list[str]:
    """Return the names of the tasks in `.srpo/ratings`."""
    return sorted(path.parent.name for path in (home() / "ratings").glob(f"*/{TASK_FILE}"))


def find_task(name: str) -> Task:
    """Read a task by its name or the beginning of it.

    Raises:
        DataError: there is none, or several begin like this; the message lists them.
    """
    known = known_tasks()
    found = [one for one in known if one.startswith(name)]
    if len(found) != 1:
        listed = ", ".join(found or known) or "none; 'srpo rate RELEASE' makes one"
        raise DataError(
            f"{'several tasks begin' if found else 'no task begins'} with {name!r}: known are {listed}"
        )
    return read_task(directory_of(found[0]))


def read_task(directory: Path) -> Task:
    """Read a task from its directory.

    Raises:
        ArtifactError: task.json is missing, damaged, or not that of this directory.
    """
    path = directory / TASK_FILE
    try:
        content = TaskFile.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing: 'srpo rate RELEASE' makes a task") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ArtifactError(f"{path} is damaged ({place}: {first['msg']}): remove {directory}") from None
    if task_id(content.planned) != directory.name:
        raise ArtifactError(
            f"{path} is not the task {directory.name}, whose name is a digest: remove {directory}"
        )
    items = _named_items(content)
    shown_images = {
        file_of(content.secret, shown_image): shown_image
        for one in content.planned.items
        for shown_image in one.shown
    }
    return Task(
        directory.name, directory, content.planned, items, shown_images, keyed(content.secret, "token")
    )


def keyed(secret: str, *key: object) -> str:
    """Return a name that says nothing to who does not know the secret, the same for the same key; 24 hex digits."""
    return hmac.new(secret.encode(), repr(key).encode(), "sha256").hexdigest()[:24]


def file_of(secret: str, shown_image: ShownImage) -> str:
    """Return the name of an image's file."""
    return f"{keyed(secret, 'image', shown_image.model, shown_image.prompt, shown_image.sample)}.webp"


def _named_items(content: TaskFile) -> dict[str, Item]:
    planned, secret = content.planned, content.secret
    names = [keyed(secret, "item", number)[:DIGITS] for number in range(len(planned.items))]
    repeated = {one.repeats for one in planned.items}
    items = []
    for number, one in enumerate(planned.items):
        free = int(keyed(secret, "phase", number), 16) % PHASES
        phase = PHASES - 1 if one.kind == REPEAT else 0 if number in repeated else free
        item = Item(
            id=names[number],
            prompt=planned.prompts[one.prompt],
            style=planned.styles[one.prompt],
            repeats="" if one.repeats is None else names[one.repeats],
            files=tuple(file_of(secret, shown_image) for shown_image in one.shown),
            first_is_a=int(keyed(secret, "slot", number), 16) % 2 == 0,
            phase=phase,
            **one.model_dump(include={"kind", "sample", "first", "second", "expected", "dimension"}),
        )
        items.append(item)
    return {item.id: item for item in sorted(items, key=lambda item: item.id)}
