"""Names of settings that changed, so that an old params.yaml or command line gets an error that names the new key."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

RENAMED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "reward": "rewards",
        "draw": "generate",
        "draw.steps": "generate.num_inference_steps",
        "draw.guidance": "generate.guidance_scale",
        "control_words.draw": "control_words.choice",
        "train.rollout.steps": "train.rollout.num_inference_steps",
        "train.rollout.guidance": "train.rollout.guidance_scale",
        "train.direct_align.guidance": "train.direct_align.guidance_scale",
        "train.compute.rollout_copy": "train.compute.gather_rollout",
        "evaluate.real_pictures": "evaluate.real_images",
        "resources.draw_workers": "resources.generate_workers",
    }
)

FORMS: Final[Mapping[str, str]] = MappingProxyType(
    {"rewards": ", a list: rewards: [{scorer: NAME, path: DIRECTORY, weight: 1}]"}
)


def new_names(key: str, value: Any) -> str:
    """Say in brackets what an unknown key, and keys below it, are called now; empty if none was renamed."""
    below = [f"{key}.{name}" for name in value] if isinstance(value, Mapping) else []
    known = [
        f"{old} is now {RENAMED[old]}{FORMS.get(RENAMED[old], '')}" for old in (key, *below) if old in RENAMED
    ]
    return f" ({', '.join(known)})" if known else ""
