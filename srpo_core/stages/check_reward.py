"""Stage check_reward: does the reward prefer the images that the held-out pairs prefer?"""

import logging
from collections.abc import Iterator, Sequence
from math import sqrt
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from srpo_core import artifacts
from srpo_core.config import CheckRewardSettings, ResourceSettings, ScorerSettings
from srpo_core.data.tables import Pair, read_images, read_pairs
from srpo_core.errors import DataError, GateError
from srpo_core.protocols import RewardModel
from srpo_core.runtime.progress import with_progress
from srpo_core.runtime.ray_cluster import local_device
from srpo_core.scorers import load_reward

if TYPE_CHECKING:
    from PIL import Image

PAIRS_AT_ONCE: Final = 64  # images held in memory: twice as many
Z_95: Final = 1.959964  # quantile of the normal distribution for a two-sided 95 % interval
WHITE: Final = 255

log = logging.getLogger(__name__)


def run(*, reward: ScorerSettings, check_reward: CheckRewardSettings, resources: ResourceSettings) -> None:
    """Score held-out pairs and write runs/check_reward/agreement.json, which stays also after a refusal.

    The measured share is held to `check_reward.min_agreement`, not an end of its interval: the check is to stop a
    reward that is broken or turned round, not to prove a rank among good ones.

    Raises:
        DataError: the split test has no pair.
        ConfigError: no GPU where the resources ask for one.
        GateError: the reward agrees with fewer pairs than `check_reward.min_agreement`.
    """
    torch.set_num_threads(resources.threads_per_worker)
    pairs = read_pairs("test", check_reward.max_pairs)
    if not pairs:
        raise DataError(
            f"{artifacts.PAIRS} has no pair of split test: the reward cannot be checked; "
            "add records to test.json of ingest.source"
        )
    device = local_device(resources)
    agreed = list(_agreements(load_reward(reward).to(device), pairs, device))
    agreement = sum(agreed) / len(pairs)
    prompts = [pair.prompt for pair in pairs]
    low, high = wilson_interval(agreement, independent_pairs(agreed, prompts))
    least = check_reward.min_agreement
    artifacts.write_json(
        artifacts.AGREEMENT,
        {
            "pairs": len(pairs),
            "prompts": len(set(prompts)),
            "agreement": agreement,
            "low": low,
            "high": high,
        },
    )
    figures = f"{agreement:.3f} of {len(pairs)} pairs (95 % interval over their {len(set(prompts))} prompts {low:.3f} to {high:.3f})"
    if agreement < least:
        raise GateError(
            f"the reward {reward.scorer} in {reward.path} prefers the preferred image in only {figures}, "
            f"but check_reward.min_agreement is {least}: training on it would follow noise; "
            "choose another reward, or lower the threshold in params.yaml if you know why"
        )
    log.info("the reward prefers the preferred image in %s", figures)


def independent_pairs(agreed: Sequence[bool], prompts: Sequence[str]) -> float:
    """How many independent pairs tell as much as these, which share prompts and images; at most as many.

    The pairs over the design effect of their grouping by prompt; where all agree or none does, which shows no
    spread, the number of prompts. Kish 1965, section 5.4; with Wilson's interval: Korn and Graubard 1998.
    """
    groups: dict[str, list[bool]] = {}
    for prompt, one in zip(prompts, agreed, strict=True):
        groups.setdefault(prompt, []).append(one)
    share, count = sum(agreed) / len(agreed), len(groups)
    beyond = sum((sum(own) - share * len(own)) ** 2 for own in groups.values())
    if count == 1 or share in {0, 1}:
        return float(count)
    if beyond == 0:
        return float(len(agreed))
    variance = beyond / len(agreed) ** 2 * count / (count - 1)
    return min(float(len(agreed)), share * (1 - share) / variance)


def wilson_interval(share: float, trials: float, z: float = Z_95) -> tuple[float, float]:
    """Interval in [0, 1] for a share of successes in independent trials. Wilson 1927."""
    denominator = 1 + z**2 / trials
    centre = (share + z**2 / (2 * trials)) / denominator
    half = z * sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2)) / denominator
    return max(0.0, centre - half), min(1.0, centre + half)


def _agreements(scorer: RewardModel, pairs: Sequence[Pair], device: torch.device) -> Iterator[bool]:
    """Per pair, whether the preferred image scores higher; a tie does not count."""
    for start in with_progress(range(0, len(pairs), PAIRS_AT_ONCE), "score pairs"):
        yield from _agreements_at_once(scorer, pairs[start : start + PAIRS_AT_ONCE], device)


@torch.no_grad()
def _agreements_at_once(scorer: RewardModel, pairs: Sequence[Pair], device: torch.device) -> list[bool]:
    images = read_images({path for pair in pairs for path in (pair.preferred, pair.rejected)})
    # HPD's images have many sizes, so each passes the tower on its own
    features = {path: scorer.encode_images(_to_tensor(image).to(device))[0] for path, image in images.items()}
    texts = scorer.encode_texts([pair.prompt for pair in pairs])
    return [
        bool((features[pair.preferred] - features[pair.rejected]) @ text > 0)
        for pair, text in zip(pairs, texts, strict=True)
    ]


def _to_tensor(image: "Image.Image") -> Tensor:
    """An RGB image as (1, 3, H, W) in [0, 1]."""
    from numpy import asarray

    return torch.from_numpy(asarray(image).copy()).permute(2, 0, 1)[None].float() / WHITE
