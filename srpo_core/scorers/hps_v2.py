"""HPSv2 and HPSv2.1 (Wu et al. 2023, arXiv 2306.09341): the reward that SRPO was published with.

The directory contains one weights file and, for any size but the published one, a configuration:

    HPS_v2.1_compressed.pt   as published (a pickled {"state_dict": ...}), any other *.pt of that form,
                             or *.safetensors with the same tensor names
    NAME.json                optional: an open_clip model configuration; the default is ViT-H-14

A score of HPSv2 is a plain cosine. The weights contain a logit scale, which the score does not use.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from srpo_core.errors import ArtifactError
from srpo_core.scorers.entry import ScorerEntry, ScorerFiles
from srpo_core.scorers.open_clip import OpenClipReward, build_towers, load_towers
from srpo_core.scorers.packages import require_package
from srpo_core.scorers.weights import read_config, read_pickle, read_safetensors

CHUNK: Final = 80  # prompts; the benchmark has ten chunks per style
ARCHITECTURE: Final = "ViT-H-14"
READERS: Final = {".pt": read_pickle, ".safetensors": read_safetensors}


def load_hps_v2(path: Path) -> OpenClipReward:
    """Load HPSv2 from a directory as described above, in fp32.

    Raises:
        ArtifactError: a file is missing, damaged or of another architecture, or there is more than one of a kind.
        ConfigError: the package open_clip is not installed.
    """
    file, weights = hps_v2_files(path)
    config, config_path = _config(path, file)
    return load_towers(config, config_path, READERS[weights.suffix](weights), weights)


def hps_v2_files(path: Path) -> ScorerFiles:
    """Return the weights in a directory, and the configuration if it has one.

    Raises:
        ArtifactError: there are no weights, or there is more than one file of a kind.
    """
    files = sorted(path.iterdir()) if path.is_dir() else []
    weights = [file for file in files if file.suffix in READERS]
    configs = [file for file in files if file.suffix == ".json"]
    if len(weights) != 1 or len(configs) > 1:
        found = ", ".join(file.name for file in weights + configs) or "neither"
        raise ArtifactError(
            f"{path} must contain one weights file (HPS_v2.1_compressed.pt, or another *.pt or *.safetensors) "
            f"and at most one open_clip configuration *.json, but contains {found}: check its path in params.yaml"
        )
    return ScorerFiles(configs[0] if configs else None, weights[0])


def build_hps_v2(path: Path) -> OpenClipReward:
    """Build HPSv2 with random weights on torch's default device; without a configuration, in the published size.

    The directory may be missing, so that a run can be planned before the weights are downloaded.

    Raises:
        ArtifactError: the configuration is damaged.
        ConfigError: the package open_clip is not installed.
    """
    return build_towers(*_config(path, next(iter(sorted(path.glob("*.json"))), None)))


def benchmark(scores: Sequence[float], styles: Sequence[str]) -> dict[str, dict[str, float]]:
    """Compute HPSv2's own table from one score per prompt, in the benchmark's order: mean and std by style.

    Mean and std are taken over the means of consecutive chunks of 80 prompts, times 100, as hpsv2's evaluation
    prints them. A shorter last chunk has the same weight as the others. "Average" is the mean of all scores.
    """
    table = {"Average": {"mean": float(100 * np.mean(scores))}}
    for style in sorted(set(styles)):
        own = [100 * score for score, other in zip(scores, styles, strict=True) if other == style]
        means = [np.mean(own[start : start + CHUNK]) for start in range(0, len(own), CHUNK)]
        table[style] = {"mean": float(np.mean(means)), "std": float(np.std(means))}
    return table


def _config(path: Path, file: Path | None) -> tuple[Mapping[str, Any], Path]:
    """The configuration in a file, else the published one, and the path that errors should name."""
    if file is not None:
        return read_config(file), file
    require_package("open_clip", f"the scorer in {path}")
    from open_clip import get_model_config

    return get_model_config(ARCHITECTURE), path / f"{ARCHITECTURE} of open_clip"


HPS_V2: Final = ScorerEntry(
    load_hps_v2,
    differentiable=True,
    range=(-1, 1),
    licence="Apache-2.0",
    source="xswu/HPSv2 (HPS_v2.1_compressed.pt), arXiv 2306.09341",
    build=build_hps_v2,
    files=hps_v2_files,
)
