"""The paper's algorithm as pure functions in its symbols. Start with `direct_align`, then read `srpo`."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from srpo_core.algorithm.absolute import (
    direct_align,
    direct_align_aggregated,
    direct_align_aggregated_cost,
    direct_align_cost,
)
from srpo_core.algorithm.baselines import draft_k, draft_k_cost, draft_lv, draft_lv_cost, refl, refl_cost
from srpo_core.algorithm.dance_grpo import dance_grpo, dance_grpo_cost
from srpo_core.algorithm.method import Method, MethodEntry
from srpo_core.algorithm.srpo import srpo, srpo_cost
from srpo_core.config import TrainSettings
from srpo_core.errors import ConfigError, pick

METHODS: Final[Mapping[str, MethodEntry]] = MappingProxyType(
    {
        "srpo": MethodEntry(srpo, srpo_cost, real_images=True),
        "direct_align": MethodEntry(direct_align, direct_align_cost, real_images=True),
        "direct_align_aggregated": MethodEntry(
            direct_align_aggregated, direct_align_aggregated_cost, real_images=True
        ),
        "refl": MethodEntry(refl, refl_cost, real_images=False),
        "draft_k": MethodEntry(draft_k, draft_k_cost, real_images=False),
        "draft_lv": MethodEntry(draft_lv, draft_lv_cost, real_images=False),
        "dance_grpo": MethodEntry(dance_grpo, dance_grpo_cost, real_images=False),
    }
)


def method_of(settings: TrainSettings) -> Method:
    """Return the method that the settings name.

    Raises:
        ConfigError: the name is unknown, the settings ask for given images or another solver than Euler and the method
            trains the sampler's own steps, or it cannot train with other settings.
    """
    entry = pick(METHODS, settings.method, "method")
    if settings.rollout.source != "online" and not entry.real_images:
        able = ", ".join(name for name, other in METHODS.items() if other.real_images)
        raise ConfigError(
            f"train.method {settings.method!r} trains the sampler's own steps, so train.rollout.source must be "
            f"online, not {settings.rollout.source!r}; methods that can start from given images are {able}"
        )
    if settings.rollout.solver != "euler" and not entry.real_images:
        able = ", ".join(name for name, other in METHODS.items() if other.real_images)
        raise ConfigError(
            f"train.method {settings.method!r} trains the sampler's own steps, which are Euler's, so train.rollout.solver "
            f"must be euler, not {settings.rollout.solver!r}; methods that start from finished images are {able}"
        )
    entry.cost(settings)  # refuses what this method cannot train with
    return entry.run
