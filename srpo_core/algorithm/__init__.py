"""The paper: pure functions in its symbols, on torch alone. Start with `direct_align`, then `srpo`."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from srpo_core.algorithm.absolute import direct_align, direct_align_aggregated
from srpo_core.algorithm.baselines import draft_k, draft_lv, refl
from srpo_core.algorithm.method import Method, MethodEntry
from srpo_core.algorithm.srpo import srpo
from srpo_core.config import TrainSettings
from srpo_core.errors import ConfigError, pick

METHODS: Final[Mapping[str, MethodEntry]] = MappingProxyType(
    {
        "srpo": MethodEntry(srpo, real_images=True),
        "direct_align": MethodEntry(direct_align, real_images=True),
        "direct_align_aggregated": MethodEntry(direct_align_aggregated, real_images=True),
        "refl": MethodEntry(refl, real_images=False),
        "draft_k": MethodEntry(draft_k, real_images=False),
        "draft_lv": MethodEntry(draft_lv, real_images=False),
    }
)


def method_of(settings: TrainSettings) -> Method:
    """The method that the settings name.

    Raises:
        ConfigError: there is none of this name, or it cannot start from real images and should.
    """
    entry = pick(METHODS, settings.method, "method")
    if settings.rollout.source != "online" and not entry.real_images:
        able = ", ".join(name for name, other in METHODS.items() if other.real_images)
        raise ConfigError(
            f"train.method {settings.method!r} trains the sampler's own steps, so train.rollout.source must be "
            f"online, not {settings.rollout.source!r}: real images are for {able}"
        )
    return entry.run
