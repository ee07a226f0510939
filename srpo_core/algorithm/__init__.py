"""The paper: pure functions in its symbols, on torch alone. Start with `direct_align`, then `srpo`."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from srpo_core.algorithm.absolute import direct_align, direct_align_aggregated
from srpo_core.algorithm.baselines import draft_k, draft_lv, refl
from srpo_core.algorithm.method import MethodEntry
from srpo_core.algorithm.srpo import srpo

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
