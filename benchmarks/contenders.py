"""The methods that benchmarks/compare.py compares: one line each, as a change of the settings `train` of params.yaml.

A line may also name several values of `direct_align`, `rollout` and so on; what it leaves out is the preset's, but for
the number of rollout steps, which is that of `USUAL`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from srpo_core.config import ControlWords, Settings, parse_settings, patched

BASE: Final = "base"
REFERENCE: Final = "SRPO online"
PAIRS: Final = {"ink_over_3d": ("Ink", "3D"), "3d_over_flat": ("3D", "Flat")}
WANTED: Final = {"reward_text": "wanted"}
OFFLINE: Final = {"source": "offline"}
USUAL: Final = {"rollout": {"num_inference_steps": 16}}  # as many as images of the demo have
FEW: Final = {"num_inference_steps": 4}
FEW_AB2: Final = {**FEW, "solver": "ab2"}
CACHED: Final = {"source": "cached"}
ONE_BRANCH: Final = {"branches": ["inversion"]}
GRPO_RATE: Final = {"learning_rate": 1.0e-4}


@dataclass(frozen=True)
class Contender:
    """One method under one name.

    train: what differs from the preset's settings `train`; seeds: number of training seeds; length: its optimizer steps
    as a multiple of the others', for a method whose steps are cheap; full: what differs at full size from the preset's
    settings and from `train`, for the plan of benchmarks/gain_per_flop.py.
    """

    name: str
    train: Mapping[str, Any]
    seeds: int = 3
    length: int = 1
    full: Mapping[str, Any] = field(default_factory=dict)
    notes: str = field(default="", compare=False)


CONTENDERS: Final = (
    Contender(REFERENCE, {"method": "srpo"}, seeds=5),
    Contender("SRPO offline", {"method": "srpo", "rollout": OFFLINE}),
    Contender("SRPO, 4 rollout steps", {"method": "srpo", "rollout": FEW}),
    Contender("SRPO, 4 steps ab2", {"method": "srpo", "rollout": FEW_AB2}, seeds=5),
    Contender("SRPO, cached", {"method": "srpo", "rollout": CACHED}, seeds=5),
    Contender("SRPO, cached by 4 steps", {"method": "srpo", "rollout": {**CACHED, **FEW_AB2}}, seeds=5),
    # half the trained calls: the cheapest line
    Contender(
        "SRPO, cached by 4 steps, inversion alone",
        {"method": "srpo", "rollout": {**CACHED, **FEW_AB2}, "direct_align": ONE_BRANCH},
        seeds=5,
    ),
    Contender("Direct-Align", {"method": "direct_align", **WANTED}),
    Contender("ReFL", {"method": "refl", **WANTED}),
    Contender("DRaFT-LV", {"method": "draft_lv", **WANTED}),
    Contender("DRaFT-K", {"method": "draft_k", **WANTED}),
    # as many images in a step as the others have: 4 prompts with groups of 4. At their learning rate the reward does not rise
    Contender(
        "DanceGRPO",
        {"method": "dance_grpo", "batch_size": 4, "optimizer": GRPO_RATE, **WANTED},
        full={"batch_size": 8, "dance_grpo": {"group_size": 4}},
    ),
)


def named(name: str) -> Contender:
    """Return a contender. Raises `SystemExit` if no line has the name."""
    for one in CONTENDERS:
        if one.name == name:
            return one
    raise SystemExit(f"no method {name!r}: known are {', '.join(one.name for one in CONTENDERS)}")


def settings_of(
    values: Mapping[str, Any], train: Mapping[str, Any], *, pair: str, seed: int, steps: int, every: int
) -> Settings:
    """Return the settings of one training run.

    values: params.yaml; train: the contender's change; pair: a key of `PAIRS`; every: steps between checkpoints.
    """
    changed = patched(USUAL, {**train, "steps": steps, "checkpoint_every": every})
    settings = parse_settings(patched(values, {"seed": seed, "train": changed}), "benchmarks/contenders.py")
    wanted, unwanted = PAIRS[pair]
    return settings.model_copy(
        update={"control_words": ControlWords.of(wanted=[wanted], unwanted=[unwanted])}
    )
