"""How far the base depends on its seed: base and distillation again from other seeds, measured by the same judges.

Run in assets/tiny/recipe: `python -m tiny_family.spread 1 2`. VAE and judges are those of ../family. A killed run goes
on from its last checkpoint; what it needs for that stands beside this directory, in .seed-*.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from tiny_family.figures import FIGURES, read_figures, write_figures

FAMILY: Final = Path("../family")
# trained once, for every seed: where a stage reads it and where the family has it
SHARED: Final[Mapping[str, str]] = {
    "vae": "base/vae",
    "judge_a": "judge_a",
    "judge_b": "judge_b",
}
STAGES: Final = ("base", "distill", "measure")


def prepare(seed: int) -> Path:
    """A directory beside this one with the settings of another seed and the parts that all seeds share."""
    settings = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    text = yaml.safe_dump({**settings, "seed": seed}, sort_keys=False)
    place = Path("..").resolve() / f".seed-{seed}-{inputs_digest(text)}"
    (place / FIGURES).mkdir(parents=True, exist_ok=True)
    (place / "params.yaml").write_text(text, encoding="utf-8")
    shutil.copy("subjects.json", place)
    for part, source in SHARED.items():
        shutil.copytree(FAMILY / source, place / "out" / part, dirs_exist_ok=True)
    return place


def inputs_digest(settings: str) -> str:
    """Of the settings, the code of the stages and the shared parts: another recipe begins anew."""
    digest = hashlib.sha256(settings.encode())
    parts = [file for source in SHARED.values() for file in sorted((FAMILY / source).rglob("*"))]
    for file in [*sorted(Path("tiny_family").glob("*.py")), *parts]:
        if file.is_file() and file.name != Path(__file__).name:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:8]


def measured(seed: int) -> dict[str, Any]:
    """Train and measure the base of one seed; stages that it has finished are not run again."""
    place = prepare(seed)
    paths = [str(Path.cwd()), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    for stage in STAGES:
        if not (place / FIGURES / f"{stage}.json").exists():
            command = [sys.executable, "-m", f"tiny_family.{stage}"]
            subprocess.run(command, cwd=place, check=True, env=environment)
    return numbers(read_figures("measure", place / FIGURES))


def numbers(figures: Mapping[str, Any]) -> dict[str, float]:
    """Those figures that are one number, and differ between seeds."""
    return {
        name: value
        for name, value in figures.items()
        if isinstance(value, float) and not name.startswith("chance")
    }


def spread(per_seed: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Least, mean and greatest value of each figure over the seeds."""
    names = next(iter(per_seed.values()))
    columns = {name: [figures[name] for figures in per_seed.values()] for name in names}
    return {
        name: {"least": min(values), "mean": sum(values) / len(values), "greatest": max(values)}
        for name, values in columns.items()
    }


def told_before(own: str, figures: Mapping[str, float]) -> dict[str, Mapping[str, float]]:
    """The figures of the shipped base, and what figures/spread.json tells of other seeds beside this very base."""
    per_seed: dict[str, Mapping[str, float]] = {}
    if (FIGURES / "spread.json").exists():
        per_seed = read_figures("spread")["per_seed"]
    return per_seed if per_seed.get(own) == figures else {own: figures}


def main(arguments: Sequence[str] | None = None) -> None:
    """Write figures/spread.json over the shipped base and the bases of the seeds named, after each of them."""
    parser = argparse.ArgumentParser(
        description="Train the base from other seeds and write figures/spread.json."
    )
    parser.add_argument("seeds", type=int, nargs="+", help="seeds beside that of params.yaml")
    seeds: list[int] = parser.parse_args(arguments).seeds
    own = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))["seed"]
    if own in seeds:
        parser.error(
            f"seed {own} is that of params.yaml, which figures/measure.json tells of already: leave it out"
        )
    per_seed = told_before(str(own), numbers(read_figures("measure")))
    for seed in seeds:
        per_seed[str(seed)] = measured(seed)
        write_figures("spread", {"per_seed": per_seed, "spread": spread(per_seed)})


if __name__ == "__main__":
    main()
