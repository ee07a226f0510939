"""Score the pairs of data sets with the rewards of the settings."""

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from srpo_core.config import IngestSettings, Settings
from srpo_core.data.kept import KeptRecords, open_kept
from srpo_core.data.statistics import NO_STYLE, styles_by_prompt
from srpo_core.data.subsets import sampled_places
from srpo_core.data.tables import Pair
from srpo_core.errors import DataError
from srpo_core.prompts import normal_form

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from srpo_core.protocols import RewardModel


class PairScorer:
    """The rewards of the settings, loaded when the first pairs are scored, on the device of `resources`."""

    def __init__(self, settings: Settings, max_pairs: int | None = None) -> None:
        """max_pairs: most pairs to score of a data set; by default `check_reward.max_pairs`."""
        self._settings = settings
        self._limit = max_pairs or settings.check_reward.max_pairs

    @cached_property
    def _loaded(self) -> "tuple[RewardModel, torch.device]":
        import torch

        from srpo_core.runtime.ray_cluster import local_device
        from srpo_core.scorers import load_rewards

        torch.set_num_threads(self._settings.resources.threads_per_worker)
        device = local_device(self._settings.resources)
        return load_rewards(self._settings.rewards).to(device), device

    def score(
        self, name: str, ingest: IngestSettings, findings: Mapping[str, Mapping[str, Any]] | None
    ) -> tuple[list[Pair], dict[str, list[bool]]]:
        """Return pairs of the split test, and whether each reward prefers what people preferred, as `agreements`.

        name: of the data, for messages. ingest, findings: as for `open_kept`.

        Raises:
            DataError: the split test has no pairs.
        """
        from srpo_core.data.decoded_images import read_decoded
        from srpo_core.stages.check_reward import agreements

        source = open_kept(ingest, findings)
        pairs = _test_pairs(source, self._limit)
        if not pairs:
            raise DataError(f"{name} has no pairs of the split test to compare the rewards with")
        rewards, device = self._loaded
        with source.images("test") as stored:

            def read(names: Iterable[str]) -> "dict[str, Image.Image]":
                return {name: read_decoded(stored, name) for name in sorted(names)}

            return pairs, agreements(rewards, pairs, device, read)


def _test_pairs(source: KeptRecords, limit: int | None) -> list[Pair]:
    """Return the pairs of the split test with the style of their prompt; if there are more, a sample of `limit`."""
    styles = styles_by_prompt(source.benchmark())
    pairs = [
        Pair(0, "test", choice.prompt, *two, styles.get(normal_form(choice.prompt), NO_STYLE))
        for choice in source.choices("test")
        for two in choice.pairs()
    ]
    return [pairs[place] for place in sampled_places(len(pairs), limit)]
