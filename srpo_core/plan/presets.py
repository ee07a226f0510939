"""The presets at full size, each with the hardware that it is for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from srpo_core.config import load_settings, profile_path
from srpo_core.plan.cluster import GB, TERA, Cluster
from srpo_core.plan.estimates import Plan
from srpo_core.plan.making import Counter

MFU: Final = 0.4
BANDWIDTH: Final = 300 * GB


@dataclass(frozen=True)
class Preset:
    """A profile and the cluster that it is for. Prices are examples of 2026, in dollars per GPU hour."""

    profile: str
    card: str
    cluster: Cluster


def _rtx_4090() -> Cluster:
    return Cluster(1, 24 * GB, 0.5, MFU, 165.2 * TERA, BANDWIDTH, float32=82.6 / 165.2)


def _l40s() -> Cluster:
    return Cluster(1, 48 * GB, 1.0, MFU, 362 * TERA, BANDWIDTH, float32=91.6 / 362)


def _h100(gpus: int) -> Cluster:
    return Cluster(gpus, 80 * GB, 2.5, MFU, 989 * TERA, BANDWIDTH, float32=67 / 989)


PRESETS: Final[Sequence[Preset]] = (
    Preset("flux1_dev_lora_24gb", "RTX 4090", _rtx_4090()),
    Preset("flux1_dev_lora_48gb", "L40S", _l40s()),
    Preset("flux1_dev_lora_80gb", "H100", _h100(1)),
    Preset("flux1_dev", "H100", _h100(8)),
    Preset("flux1_dev", "H100", _h100(32)),
)


def plan_presets(root: Path = Path(), *, counter: Counter | None = None) -> list[tuple[Preset, Plan]]:
    """Plan every preset on its hardware; equal calls are counted once, or not at all if `counter` knows them."""
    counter = counter or Counter()
    return [
        (preset, counter.plan(load_settings(profile_path(preset.profile, root)), preset.cluster))
        for preset in PRESETS
    ]
