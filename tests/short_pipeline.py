"""Clone this repository and run the whole pipeline in the clone, with settings that keep it short."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from srpo_core.config import patched

ROOT = Path(__file__).resolve().parents[1]

# The figures of so short a run mean nothing, so the gate's thresholds let it pass.
SHORT = {
    "train": {
        "steps": 4,
        "batch_size": 4,
        "checkpoint_every": 2,
        "sample_prompts": 2,
        "rollout": {"num_inference_steps": 4},
        "early_stop": {"num_prompts": 3, "num_inference_steps": 4, "base_seeds": 3},
    },
    "generate": {"num_inference_steps": 4},
    "check_reward": {"max_pairs": 32},
    "select": {"num_prompts": 4, "seeds_per_prompt": 2, "keep": {"judge_top5": -1.0, "diversity": -1.0}},
    "evaluate": {"num_prompts": 9, "seeds_per_prompt": 2},
    "gate": {
        "resamples": 2000,
        "rules": {
            **{
                name: {"margin": -1.0}
                for name in ("style_gained", "objective_gained", "subject_kept", "reward_kept")
            },
            "style_wins": {"severity": "warn"},
            "diversity_kept": {"margin": 0.0},
            # with 9 prompts, no share of broken images can be shown to be small
            **{name: {"severity": "warn"} for name in ("few_broken", "no_prompt_lost", "few_copies")},
            **{name: {"margin": 1.0} for name in ("no_common_mark", "no_common_edge", "phases_even")},
            **{
                name: {"margin": 1e3}
                for name in ("no_single_frequency", "detail_not_added", "contrast_not_added")
            },
            **{name: {"margin": 0.0} for name in ("detail_kept", "contrast_kept")},
            "channels_agree": {"margin": -2.0},
            "highlights_band": {"margin": 1.0},
        },
    },
    "report": {"grid_prompts": 3},
    "quantize": {
        "num_prompts": 4,
        "formats": {
            name: {"min_psnr": 0.0, "min_completeness": 0.0, "min_gain_kept": -1e6}
            for name in ("bf16", "fp8_e4m3fn", "fp8_e4m3fn_scaled", "q8_0")
        },
    },
}


class Checkout:
    """A clone with the short settings committed, and methods that run commands in it as a user would."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reference: dict[str, dict[str, str]] = {}
        self._steps_trained: list[int] = []
        self.environment = {
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith(("SRPO_", "GIT_", "PREFECT_"))
            },
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": str(path),
            "OMP_NUM_THREADS": "1",
            "NO_COLOR": "1",
        }

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "srpo_core", *words]

    def srpo(self, *words: str, **options) -> subprocess.CompletedProcess:
        return self.run(*self.command(*words), **options)

    def run(self, *words: str, check: bool = True, **environment) -> subprocess.CompletedProcess:
        done = subprocess.run(
            words,
            cwd=self.path,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        if steps := re.findall(r"step \d+ of \d+  loss ", done.stdout + done.stderr):
            self._steps_trained.append(len(steps))
        if check and done.returncode:
            raise AssertionError(
                f"{words} ended with {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
            )
        return done

    def git(self, *words: str) -> str:
        return self.run("git", "-c", "user.name=t", "-c", "user.email=t@example.org", *words).stdout.strip()

    def json(self, name: str):
        return json.loads((self.path / name).read_text())

    def outputs(self) -> dict[str, dict[str, str]]:
        """Return the hash of each output by stage, as recorded in dvc.lock."""
        lock = yaml.safe_load((self.path / "dvc.lock").read_text())
        return {
            stage: {out["path"]: out["md5"] for out in entry["outs"]}
            for stage, entry in lock["stages"].items()
        }

    def steps_trained(self) -> list[int]:
        """The number of optimizer steps that each command has logged, without commands that trained none."""
        return list(self._steps_trained)


def make_checkout(path: Path) -> Checkout:
    """Clone this repository, uncommitted changes included, and commit the short settings as `tiny`."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(path)], check=True)
    checkout = Checkout(path)
    changed = subprocess.run(
        ["git", "ls-files", "-z", "--modified", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split("\0")  # fmt: skip
    for name in filter(None, changed):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, path / name)
    settings = patched(yaml.safe_load((ROOT / "profiles/tiny.yaml").read_text()), SHORT)
    for name in ("params.yaml", "profiles/tiny.yaml"):
        (path / name).write_text(yaml.safe_dump(settings, sort_keys=False))
    (path / "dvc.lock").unlink(missing_ok=True)
    checkout.git("add", "--all")
    checkout.git("commit", "--quiet", "-m", "short settings")
    return checkout
