"""HPSv2 and HPSv2.1 (Wu et al. 2023, arXiv 2306.09341): the reward that SRPO was published with.

Its directory holds one file of weights and, for anything but the published size, its configuration:

    HPS_v2.1_compressed.pt   as published (a pickled {"state_dict": ...}), or any *.pt of that form,
                             or *.safetensors with the same names
    NAME.json                optional: an open_clip model configuration; without it ViT-H-14

A score of HPSv2 is a plain cosine, without the logit scale that the weights carry as well.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from srpo_core.errors import ArtifactError
from srpo_core.scorers.open_clip import OpenClipReward, assemble
from srpo_core.scorers.packages import require_package
from srpo_core.scorers.weights import read_config, read_pickle, read_safetensors

CHUNK: Final = 80  # prompts; the benchmark has ten chunks for each style
ARCHITECTURE: Final = "ViT-H-14"
READERS: Final = {".pt": read_pickle, ".safetensors": read_safetensors}


def load_hps_v2(path: Path) -> OpenClipReward:
    """Load HPSv2 from a directory as described above; it computes in fp32.

    Raises:
        ArtifactError: a file is missing, damaged, of another architecture, or one of several.
        ConfigError: the package open_clip is not installed.
    """
    files = sorted(path.iterdir()) if path.is_dir() else []
    weights = [file for file in files if file.suffix in READERS]
    configs = [file for file in files if file.suffix == ".json"]
    if len(weights) != 1 or len(configs) > 1:
        found = ", ".join(file.name for file in weights + configs) or "neither"
        raise ArtifactError(
            f"{path} must hold one file of weights (HPS_v2.1_compressed.pt, or another *.pt or *.safetensors) "
            f"and at most one open_clip configuration *.json; found {found}: check reward.path in params.yaml"
        )
    config = read_config(configs[0]) if configs else _published_config(path)
    return assemble(
        config, configs[0] if configs else path, READERS[weights[0].suffix](weights[0]), weights[0]
    )


def benchmark(scores: Sequence[float], styles: Sequence[str]) -> dict[str, dict[str, float]]:
    """HPSv2's own table from one score per prompt, in the benchmark's order: by style its mean and its std.

    Both are of the means of consecutive chunks of 80 prompts, times 100, as hpsv2's evaluation prints them;
    a last chunk that is shorter weighs as much as the others. "Average" is the mean of all scores, as printed there.
    """
    table = {"Average": {"mean": float(100 * np.mean(scores))}}
    for style in sorted(set(styles)):
        own = [100 * score for score, other in zip(scores, styles, strict=True) if other == style]
        means = [np.mean(own[start : start + CHUNK]) for start in range(0, len(own), CHUNK)]
        table[style] = {"mean": float(np.mean(means)), "std": float(np.std(means))}
    return table


def _published_config(path: Path) -> Mapping[str, Any]:
    require_package("open_clip", f"the scorer in {path}")
    from open_clip import get_model_config

    config: Mapping[str, Any] = get_model_config(ARCHITECTURE)
    return config
