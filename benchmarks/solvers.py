"""Compare solvers of a rollout with few steps: how far are latents and images from those of many small steps?

    python benchmarks/solvers.py            # the tables of docs/algorithm.md, "Rollouts with few steps"; 3 CPU minutes

Each solver integrates dz = v dsigma of the tiny base from the same noise, with the rollout's guidance and shift and with
one model call a step (heun: two, in half as many steps). The reference is the Runge-Kutta method of order 4 in 64 steps.
x0: norm of the difference of the latents over the norm of the reference, the median and the mean over the images; pixel:
mean absolute difference of the decoded images in 1/255. The mean is larger than the median because some images become
another image: with few steps these start on another side of a decision.
"""

import argparse
import json
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, Final

import torch
from torch import Tensor
from trial import ROOT, SUBJECTS, absolute

from srpo_core.algorithm.rollout import ab2_velocity, rollout
from srpo_core.algorithm.schedule import shifted_sigmas
from srpo_core.config import PARAMS_FILE, Settings, load_settings
from srpo_core.models import encode_prompts
from srpo_core.models.loaded import load_base

Velocity = Callable[[Tensor, Tensor], Tensor]
"""Returns the velocity of latents (B, S, C) at a scalar sigma."""
Solver = Callable[[Velocity, Tensor, Tensor], Tensor]
"""Returns x0 of a velocity, noise (B, S, C) and sigmas."""

STEPS: Final = (2, 3, 4, 6, 8, 16)
SHIFTS: Final = (1.0, 1.583, 2.2, 3.0)


def runge_kutta(v: Velocity, z: Tensor, sigmas: Tensor) -> Tensor:
    """Integrate by the classical method of order 4."""
    for sigma, following in pairwise(sigmas):
        h = following - sigma
        k1 = v(z, sigma)
        k2 = v(z + h / 2 * k1, sigma + h / 2)
        k3 = v(z + h / 2 * k2, sigma + h / 2)
        z = z + h / 6 * (k1 + 2 * k2 + 2 * k3 + v(z + h * k3, following))
    return z


def heun(v: Velocity, z: Tensor, sigmas: Tensor) -> Tensor:
    """Integrate by Heun's method in half as many steps, which are every second of `sigmas`."""
    for sigma, following in pairwise(sigmas[::2]):
        h, k1 = following - sigma, v(z, sigma)
        z = z + h * (k1 + v(z + h * k1, following)) / 2
    return z


def ab2_to_the_end(v: Velocity, z: Tensor, sigmas: Tensor) -> Tensor:
    """Integrate by Adams-Bashforth of order 2, with its formula in the last step as well."""
    former, former_step = v(z, sigmas[0]), sigmas[1] - sigmas[0]
    z = z + former_step * former
    for sigma, following in pairwise(sigmas[1:]):
        velocity, step = v(z, sigma), following - sigma
        z = z + step * ab2_velocity(velocity, former, step=step, former_step=former_step)
        former, former_step = velocity, step
    return z


def of_library(name: str, **options: Any) -> Solver:
    """Return a multistep scheduler of diffusers in its flow form."""

    def solve(v: Velocity, z: Tensor, sigmas: Tensor) -> Tensor:
        import diffusers

        scheduler = getattr(diffusers, name)(
            prediction_type="flow_prediction", use_flow_sigmas=True, final_sigmas_type="zero", **options
        )
        scheduler.set_timesteps(len(sigmas) - 1)
        # its logarithm of the signal-to-noise ratio is infinite at 1
        scheduler.sigmas = torch.cat([sigmas[:1] - 1e-4, sigmas[1:]])
        for sigma, time in zip(sigmas, scheduler.timesteps, strict=False):
            z = scheduler.step(v(z, sigma), time, z).prev_sample
        return z

    return solve


SOLVERS: Final[Mapping[str, Solver]] = {
    "euler": lambda v, z, sigmas: _ours(v, z, sigmas, "euler"),
    "ab2": lambda v, z, sigmas: _ours(v, z, sigmas, "ab2"),
    "ab2 in the last step, too": ab2_to_the_end,
    "DPM-Solver++(2M)": of_library("DPMSolverMultistepScheduler", solver_order=2),
    "UniPC, order 2": of_library("UniPCMultistepScheduler", solver_order=2),
    "heun": heun,
}


def _ours(v: Velocity, z: Tensor, sigmas: Tensor, solver: Any) -> Tensor:
    def velocity(latents: Tensor, time: Tensor, guidance: float, condition: Any) -> Tensor:
        return v(latents, time[0])

    return rollout(velocity, z, None, sigmas=sigmas, guidance=1.0, solver=solver)  # type: ignore[arg-type]


class Trial:
    """The base, its prompts and noise, and the reference's latents and images."""

    def __init__(self, settings: Settings, num_images: int) -> None:
        roll = settings.train.rollout
        prompts = json.loads(SUBJECTS.read_text(encoding="utf-8"))["train"]
        chosen = prompts[:: len(prompts) // num_images][:num_images]
        condition = encode_prompts(settings.model, chosen, batch_size=64)
        self.base, self.shift = load_base(settings.model), roll.shift
        self.noise = torch.randn(
            len(chosen), *self.base.latent_shape, generator=torch.Generator().manual_seed(0)
        )

        def velocity(z: Tensor, sigma: Tensor) -> Tensor:
            return self.base.velocity(z, sigma.expand(len(z)), roll.guidance_scale, condition)

        self.velocity: Velocity = velocity
        self.x0 = runge_kutta(velocity, self.noise, shifted_sigmas(64, self.shift))
        self.images = self.base.decode(self.x0).clamp(0, 1)

    def row(self, solver: Solver, sigmas: Tensor) -> str:
        """Return the cell of a solver with these sigmas."""
        x0 = solver(self.velocity, self.noise, sigmas)
        apart = (x0 - self.x0).flatten(1).norm(dim=1) / self.x0.flatten(1).norm(dim=1)
        pixel = 255 * (self.base.decode(x0).clamp(0, 1) - self.images).abs().mean()
        return f"{apart.median():.3f} / {apart.mean():.3f} / {pixel:.1f}"


@torch.no_grad()
def main() -> None:
    """Print both tables: by solver and number of steps, and by shift of the sigmas."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    trial = Trial(absolute(load_settings(ROOT / PARAMS_FILE)), options.images)
    print(f"x0 median / x0 mean / pixel of {len(trial.noise)} images\n")
    print("| solver | " + " | ".join(f"{steps} calls" for steps in options.steps) + " |")
    print("|---" * (len(options.steps) + 1) + "|")
    for name, solver in SOLVERS.items():
        cells = [
            "" if name == "heun" and steps % 2 else trial.row(solver, shifted_sigmas(steps, trial.shift))
            for steps in options.steps
        ]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    print("\n| shift, 4 calls | euler | ab2 |\n|---|---|---|")
    for shift in SHIFTS:
        cells = [trial.row(SOLVERS[name], shifted_sigmas(4, shift)) for name in ("euler", "ab2")]
        print(f"| {shift} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
