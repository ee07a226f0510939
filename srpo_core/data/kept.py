"""The records that stage ingest keeps: those that break no rule for which they are set aside."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import cache
from typing import Any

from srpo_core.config import IngestSettings
from srpo_core.data.benchmark import benchmark_prompts
from srpo_core.data.choices import BenchmarkPrompt, Choice
from srpo_core.data.decoded_images import decode_images
from srpo_core.data.image_rules import ImageChecks
from srpo_core.data.images import ImageSource
from srpo_core.data.preferences import Preferences
from srpo_core.data.rules import IMAGE_RULES, Findings
from srpo_core.data.sources import Source, open_source
from srpo_core.runtime.cores import available_cores
from srpo_core.runtime.progress import with_progress


class KeptRecords:
    """The records of a data set that stage ingest keeps, and the prompts to evaluate with that it keeps.

    check_images: leave out records because of their images, too; every image is read for it. The names of prompts and
    images and the places of records are in memory.

    Raises:
        DataError: a file cannot be read.
    """

    def __init__(self, source: Source, findings: Findings, *, check_images: bool) -> None:
        self._source = source
        preferences = read_preferences(source, findings)
        train = preferences["train"]
        self._benchmark = list(benchmark_prompts(source.benchmark(train.has), train, findings))
        if check_images:
            with ExitStack() as opened:
                images = cache(lambda split: opened.enter_context(source.images(split)))
                names = {split: own.images() for split, own in preferences.items()}
                check_named_images(images, names, ImageChecks(preferences, findings))
        self._places = {split: own.places() for split, own in preferences.items()}

    def choices(self, split: str) -> Iterator[Choice]:
        """Yield the records of `train` or `test` in the order of the files, without all of them in memory."""
        places = self._places[split]
        return (choice for choice in self._source.choices(split) if (choice.file, choice.record) in places)

    def benchmark(self) -> list[BenchmarkPrompt]:
        """Return the prompts to evaluate with: each once, and none that is trained on."""
        return self._benchmark

    def images(self, split: str) -> AbstractContextManager[ImageSource]:
        """Open the images of a split, by the names that its records use."""
        return self._source.images(split)


def open_kept(ingest: IngestSettings, found: Mapping[str, Mapping[str, Any]] | None = None) -> KeptRecords:
    """Open a data set without the records that stage ingest sets aside; no record ends this.

    found: what ingest found, by rule. Images are checked only if it set records aside because of their images.

    Raises:
        ConfigError: the format is unknown.
        DataError: the source is missing, has another layout, or cannot be read.
    """
    lenient = ingest.model_copy(update={"on_bad_record": "quarantine"})
    findings = Findings(lenient, None)
    bad_images = any((found or {}).get(rule, {}).get("set_aside") for rule in IMAGE_RULES)
    return KeptRecords(open_source(lenient, findings), findings, check_images=bad_images)


def read_preferences(source: Source, findings: Findings) -> dict[str, Preferences]:
    """Read the records of both splits; those that break a rule are reported and left out.

    A prompt is trained on if a record has it, even if that is left out later because of its images: held-out prompts and
    records must not depend on which images are checked.

    Raises:
        DataError: a file cannot be read, or a record breaks a rule and ends the run.
    """
    train = _read(source, Preferences("train", findings))
    return {"train": train, "test": _read(source, Preferences("test", findings, train))}


def check_named_images(
    images: Callable[[str], ImageSource], names: Mapping[str, Sequence[str]], checks: ImageChecks
) -> None:
    """Look for images by split, decode those that are there, and report what is wrong; skip those that were checked.

    Raises:
        DataError: an image breaks a rule and ends the run, or its file cannot be read.
    """
    present = {}
    for split, own in names.items():
        if unchecked := checks.unchecked(split, own):
            stored = images(split)
            present[split] = [name for name in unchecked if name in stored]
            missing = sorted(set(unchecked).difference(present[split]))
            checks.missing(split, missing, stored.where, len(unchecked))
    for split, own in present.items():
        stored = images(split)
        with_bar = with_progress(own, f"images of {split}")
        for image in decode_images(stored, with_bar, workers=available_cores()):
            checks.decoded(split, image, stored.where)
    checks.report()


def _read(source: Source, preferences: Preferences) -> Preferences:
    for choice in source.choices(preferences.split):
        preferences.add(choice)
    preferences.forget_pairs()
    return preferences
