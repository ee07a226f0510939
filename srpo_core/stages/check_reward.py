"""Stage check_reward: do the scorers of training know what people prefer, and what is plain to see?"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from srpo_core import artifacts
from srpo_core.config import (
    CheckRewardSettings,
    ResourceSettings,
    RewardSettings,
    ScorerSettings,
    rewards_by_name,
)
from srpo_core.data.intervals import share_interval
from srpo_core.data.tables import NUM_EXAMPLES, Pair, read_examples, read_images, read_pairs, to_tensor
from srpo_core.errors import DataError, GateError
from srpo_core.prompts import normal_form
from srpo_core.protocols import RewardMix, RewardModel
from srpo_core.runtime.dvc_yaml import files_below
from srpo_core.runtime.progress import with_progress
from srpo_core.runtime.ray_cluster import local_device
from srpo_core.scorers import load_rewards
from srpo_core.scorers.canaries import Example, require_known_answers
from srpo_core.scorers.known_images import drawn_examples

if TYPE_CHECKING:
    from PIL import Image

PAIRS_AT_ONCE: Final = 64  # twice as many images are in memory
MIX: Final = ""  # the name of what is trained, beside the names of its parts

ReadImages = Callable[[Iterable[str]], "dict[str, Image.Image]"]

log = logging.getLogger(__name__)


def run(
    *,
    rewards: list[RewardSettings],
    select_judge: ScorerSettings,
    check_reward: CheckRewardSettings,
    resources: ResourceSettings,
) -> None:
    """Score held-out pairs and write runs/check_reward/agreement.json, which is kept after a refusal, too.

    The measured share, not a bound of its interval, is compared with `check_reward.min_agreement`: the check should
    stop a reward that is broken or inverted, not rank good ones. The reward and the judge of select and of early stop
    also answer the questions of `srpo_core/scorers/canaries.py`; if `check_reward.max_pairs` is null, because the data
    have no pairs, these are about `drawn_examples`, and no agreement is measured.

    Raises:
        DataError: the split test has no pairs.
        ConfigError: the resources ask for a GPU and there is none.
        GateError: the reward prefers what people rejected, a scorer fails a question with a known answer, or the reward
            agrees with fewer pairs than `check_reward.min_agreement`.
    """
    torch.set_num_threads(resources.threads_per_worker)
    device = local_device(resources)
    asked = {**rewards_by_name(rewards), "select_judge": select_judge}
    if check_reward.max_pairs is None:
        artifacts.write_json(artifacts.AGREEMENT, {"pairs": 0, "weights": _digests(rewards[1:])})
        require_known_answers(asked, drawn_examples(), device)
        log.warning("how often the reward agrees with people is not measured, because the data have no pairs")
        return
    pairs = read_pairs("test", check_reward.max_pairs)
    if not pairs:
        raise DataError(
            f"{artifacts.PAIRS} has no pairs of the split test to check the reward with: "
            "add records that are held out to ingest.source (docs/data.md)"
        )
    agreed = agreements(load_rewards(rewards).to(device), pairs, device)
    agreement = sum(agreed[MIX]) / len(pairs)
    each = {name: sum(own) / len(pairs) for name, own in agreed.items() if name != MIX}
    prompts = [normal_form(pair.prompt) for pair in pairs]
    low, high = share_interval(agreed[MIX], prompts)
    least = check_reward.min_agreement
    artifacts.write_json(
        artifacts.AGREEMENT,
        {
            "pairs": len(pairs),
            "prompts": len(set(prompts)),
            "agreement": agreement,
            "low": low,
            "high": high,
            **({"each": each, "weights": _digests(rewards[1:])} if each else {}),
        },
    )
    figures = f"{agreement:.3f} of {len(pairs)} pairs (95 % CI over {len(set(prompts))} prompts: {low:.3f} … {high:.3f})"
    names = ", ".join(f"{one.scorer} in {one.path}" for one in rewards)
    _require_not_inverted(agreed, prompts, names)
    require_known_answers(asked, [Example(*one) for one in read_examples(NUM_EXAMPLES)], device)
    if agreement < least:
        raise GateError(
            f"the reward {names} agrees with only {figures}, "
            f"but check_reward.min_agreement is {least}, so training would follow noise: choose another reward, or, "
            "if you know why it agrees so rarely, lower the threshold in params.yaml"
        )
    log.info("the reward agrees with %s", figures)
    for name, share in each.items():
        log.info("the reward %s alone agrees with %.3f", name, share)


def _require_not_inverted(agreed: Mapping[str, Sequence[bool]], prompts: Sequence[str], names: str) -> None:
    """Require that the reward, and each of its parts, does not prefer what people rejected."""
    for name, own in agreed.items():
        low, high = share_interval(own, prompts)
        if high < 1 / 2:
            raise GateError(
                f"{_called(name)} ({names}) prefers the rejected images: it agrees with only "
                f"{sum(own) / len(own):.3f} of {len(own)} pairs (95 % CI over {len(set(prompts))} prompts: {low:.3f} … "
                f"{high:.3f}), so its scores are inverted, or the preferences in ingest.source are: compare a few pairs "
                "by eye"
            )


def _called(name: str) -> str:
    return f"the reward {name}".rstrip()


def agreements(
    scorer: RewardModel, pairs: Sequence[Pair], device: torch.device, read: ReadImages = read_images
) -> dict[str, list[bool]]:
    """Return for each pair whether the preferred image scores higher; a tie counts as no.

    By `MIX`, the reward that is trained; if it is the sum of several, also by the name of each.

    read: reads RGB images by their paths in `pairs`, by default from the tables of stage ingest.
    """
    found: dict[str, list[bool]] = {}
    for start in with_progress(range(0, len(pairs), PAIRS_AT_ONCE), "score pairs"):
        some = pairs[start : start + PAIRS_AT_ONCE]
        for name, gained in _gains(scorer, some, device, read).items():
            if broken := (~gained.isfinite()).nonzero().flatten().tolist():
                raise GateError(
                    f"{_called(name)} gives no finite score to a pair of {some[broken[0]].prompt!r}, and {len(broken) - 1} "
                    "others of this batch: check its files with 'srpo doctor'"
                )
            found.setdefault(name, []).extend((gained > 0).tolist())
    return found


@torch.no_grad()
def _gains(
    scorer: RewardModel, pairs: Sequence[Pair], device: torch.device, read: ReadImages
) -> dict[str, Tensor]:
    """Return by how much the preferred image of each pair scores higher, (pairs,), by name as `agreements`."""
    texts: dict[str, list[str]] = {}
    for pair in pairs:
        for path in (pair.preferred, pair.rejected):
            if pair.prompt not in texts.setdefault(path, []):
                texts[path].append(pair.prompt)
    scores: dict[str, dict[tuple[str, str], Tensor]] = {}
    # HPD's images differ in size, so each one is scored separately, once for all of its prompts
    for path, image in read(set(texts)).items():
        for name, found in _scores(scorer, to_tensor(image).to(device), texts[path]).items():
            of_name = scores.setdefault(name, {})
            of_name |= {(path, text): one for text, one in zip(texts[path], found, strict=True)}
    return {
        name: torch.stack([own[p.preferred, p.prompt] - own[p.rejected, p.prompt] for p in pairs])
        for name, own in scores.items()
    }


def _scores(scorer: RewardModel, image: Tensor, texts: Sequence[str]) -> dict[str, Tensor]:
    """Score one image for all texts, (len(texts),), by name as `agreements`."""
    if not isinstance(scorer, RewardMix):
        return {MIX: scorer.score(image, texts)}
    each = dict(scorer.score_each(image, texts))
    return {MIX: scorer.total(each), **each}


def _digests(rewards: Sequence[RewardSettings]) -> dict[str, str]:
    """Return the SHA-256 of the rewards' files, by path: dvc.yaml names only the directory of the first reward.

    Training depends on the file that this is written to, and refuses other files of these rewards.
    """
    return {str(file): artifacts.sha256(file) for one in rewards for file in files_below(Path(one.path))}
