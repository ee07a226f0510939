"""Write golden vectors of another seed, by the literal step of the benchmarks instead of the reference itself.

    python tests/golden/make_seed.py DIRECTORY --seed 7
    SRPO_GOLDEN_DIR=DIRECTORY pytest tests/algorithm/test_golden.py tests/scorers/test_golden.py

`benchmarks/literal_step.py` is written from the specification, shares no code with `srpo_core`, and is itself
held to the reference's vectors (tests/benchmarks/test_literal_step.py). Models, inputs, noise, midpoints and
discounts are drawn anew; the sizes of the models are those of tests/golden.
"""

import argparse
import json
import random
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests")]

from golden_vectors import frequencies_rounded_from_float64  # noqa: E402
from literal_step import LiteralStep, shifted_schedule, tokens_of  # noqa: E402
from step_spec import StepSpec  # noqa: E402

CAPTIONS = ("a fox in the snow, oil painting", "Two CHAIRS &amp; a   table", "café at night, 35mm", "sky")
ARGS = {
    "h": 48,
    "w": 64,
    "sampling_steps": 25,
    "vis_sampling_step": 50,
    "vis_size": 64,
    "shift": 3.0,
    "timestep_length": 1000,
    "groundtruth_ratio": 0.9,
    "train_timestep": [5, 25],
    "train_guidence": 1,
    "gradient_accumulation_steps": 2,
}
OPTIMIZER = {"lr": 1e-3, "weight_decay": 1e-4, "betas": [0.9, 0.999], "eps": 1e-8, "max_grad_norm": 0.1}
FINAL = ("proj_out.weight", "x_embedder.bias", "transformer_blocks.0.attn.to_q.weight")


def cases_of(seed):
    """Arguments and midpoint by case: the two ends of the grid, the bfloat16 quirks, and midpoints of this seed."""
    draw = random.Random(seed)
    discounts = {
        "discount_pos": [draw.uniform(0, 0.3), draw.uniform(0.2, 0.6)],
        "discount_inv": [draw.uniform(0.2, 0.6), draw.uniform(0, 0.1)],
    }
    args = ARGS | discounts
    short = args | {"timestep_length": 200, "groundtruth_ratio": 0.5, "gradient_accumulation_steps": 4}
    return {
        "hps.mid500": (args, draw.randint(200, 800)),
        "hps.mid5": (args, 5),
        "hps.mid100": (args, 100),
        "hps.drawn": (args | {"train_guidence": 2}, draw.randint(101, 899)),
        "hps.noisy": (args, draw.randint(901, 995)),
        "ga4.mid100": (short, draw.randint(5, 195)),
    }


@dataclass
class Seen:
    """What a literal step computed on its way, in order."""

    noisy: list = field(default_factory=list)
    pred: list = field(default_factory=list)
    recovered: list = field(default_factory=list)
    image: list = field(default_factory=list)
    rewards: list = field(default_factory=list)
    gradients: list = field(default_factory=list)
    branches: list = field(default_factory=list)
    times: list = field(default_factory=list)
    start: list = field(default_factory=list)


def watched(spec):
    """A literal step and the record of what it will compute."""
    step, seen = LiteralStep(spec), Seen()
    torch.autograd.set_detect_anomaly(False)  # it takes time and changes no number

    def watch(name, note):
        inner = getattr(step, name)

        def outer(*inputs):
            output = inner(*inputs)
            note(output, *inputs)
            return output

        setattr(step, name, outer)

    def predicted(v, x, timestep):
        seen.noisy.append(x.detach().clone())
        seen.pred.append(v.detach().clone())
        seen.times.append(timestep)

    def decoded(image, tokens):
        seen.recovered.append(tokens.detach().clone())
        seen.image.append(image.detach().clone())

    def scored(reward, branch, _):
        seen.rewards.append(reward.detach().flatten().tolist())
        seen.branches.append(branch)

    def went_back(_, __):
        seen.gradients.append({name: p.grad.clone() for name, p in spec.flux.named_parameters()})

    watch("rollout", lambda start, _: seen.start.append(start))
    watch("predict", predicted)
    watch("decode", decoded)
    watch("reward", scored)
    watch("backward", went_back)
    return step, seen


def figures(gradient):
    flat = gradient.double().flatten()
    probe = torch.cos(0.37 * torch.arange(len(flat), dtype=torch.float64) + 0.1)
    return {"norm": float(flat.norm()), "probe": float((flat * probe).sum())}


def index_table(spec):
    """Rows as the reference's: every midpoint, denoise then inversion."""
    step, rows = LiteralStep(spec), []
    torch.autograd.set_detect_anomaly(False)
    points = spec.args["timestep_length"]
    for m in range(5, points - 4):
        for denoise in (1, 0):
            at = step.place(denoise, m, 1)
            s, t = step.grid[at.model], step.grid[at.target]
            rounded = not isinstance(at.model, torch.Tensor)
            rows.append(
                [
                    m,
                    denoise,
                    int(at.model),
                    int(at.target),
                    int(s * 1000),
                    rounded,
                    at.discount,
                    float(s),
                    float(t),
                ]
            )
    return torch.tensor(rows, dtype=torch.float64)


class Maker:
    """Models and inputs of a seed, and the vectors that they give."""

    def __init__(self, seed):
        from diffusers import AutoencoderKL, FluxTransformer2DModel
        from open_clip import CLIP

        known = json.loads((Path(__file__).parent / "golden.json").read_text())["configs"]
        self.configs = {name: known[name] for name in ("flux", "vae", "hps_open_clip")}
        torch.manual_seed(seed)
        self.flux = FluxTransformer2DModel(**self.configs["flux"]).train()
        self.vae = AutoencoderKL(**self.configs["vae"]).eval()
        self.clip = CLIP(**self.configs["hps_open_clip"]).eval()
        self.embeds = torch.randn(len(CAPTIONS), 7, self.configs["flux"]["joint_attention_dim"])
        self.pooled = torch.randn(len(CAPTIONS), self.configs["flux"]["pooled_projection_dim"])
        self.generator = torch.Generator().manual_seed(seed + 1)
        self.cases = cases_of(seed)
        self.tensors = {
            "input.encoder_hidden_states": self.embeds,
            "input.pooled_prompt_embeds": self.pooled,
        }
        for prefix, model in (("flux", self.flux), ("vae", self.vae), ("hps", self.clip)):
            self.tensors |= {f"model.{prefix}.{name}": t.clone() for name, t in model.state_dict().items()}

    def spec(self, args, caption):
        rows = slice(caption, caption + 1)
        return StepSpec(
            args=args,
            caption=CAPTIONS[caption],
            mid_timestep=0,
            optimizer=OPTIMIZER,
            image_size=self.configs["hps_open_clip"]["vision_cfg"]["image_size"],
            context_length=self.configs["hps_open_clip"]["text_cfg"]["context_length"],
            flux=self.flux,
            vae=self.vae,
            clip=self.clip,
            prompt_embeds=self.embeds[rows],
            pooled=self.pooled[rows],
        )

    def noise(self, args):
        shape = (1, 16, args["h"] // 8, args["w"] // 8)
        return torch.randn(shape, generator=self.generator, dtype=torch.bfloat16)

    def case(self, name, number):
        """One step without its update."""
        args, mid = self.cases[name]
        caption, at_step = number % len(CAPTIONS), 1 + 3 * number
        step, seen = watched(self.spec(args, caption))
        step.update = lambda: None
        noise = self.noise(args)
        step.run(at_step, noise, mid)
        self.tensors |= {f"{name}.noise_bf16": noise, f"{name}.latent_start": seen.start[0]}
        branches = []
        for index, branch in enumerate(seen.branches):
            states = {
                "noisy": seen.noisy[index],
                "pred": seen.pred[index],
                "recovered_packed": seen.recovered[index],
                "image": seen.image[index],
            }
            self.tensors |= {f"{name}.b{index}.{state}": tensor for state, tensor in states.items()}
            norms = {parameter: figures(g) for parameter, g in seen.gradients[index].items()}
            branches.append(
                {
                    "kind": "denoise" if (len(seen.branches) - 1 - index) % 2 else "inversion",
                    "prompt": [branch.positive],
                    "neg_prompt": [branch.negative],
                    "k": branch.discount,
                    "timestep_over_1000": (torch.tensor([seen.times[index]]) / 1000).tolist(),
                    "guidance": [3.5],
                    "reward": seen.rewards[index],
                    "loss": step.branch_losses[index],
                    "cumulative_grad": norms,
                    "cumulative_grad_total_norm": sum(f["norm"] ** 2 for f in norms.values()) ** 0.5,
                }
            )
        sigmas = shifted_schedule(args["sampling_steps"], args["shift"])
        return {
            "args": args,
            "branches": branches,
            "caption_index": caption,
            "mid_timestep": mid,
            "returned_loss": step.branch_losses[-1],
            "reward": "hps",
            "rollout": name,
            "rollout_guidance": float(args["train_guidence"]),
            "rollout_timestep_ints": [int(sigma * 1000) for sigma in sigmas[:-1]],
            "step": at_step,
            "visualization_step": False,
        }

    def three_steps(self):
        """Three optimizer steps; the weights are changed from here on."""
        args, _ = self.cases["hps.mid500"]
        step, seen = watched(self.spec(args, 0))
        weights, rows = dict(self.flux.named_parameters()), []
        for number, mid in enumerate((612, 87, 930), start=1):
            caption = number - 1
            step.spec = replace(self.spec(args, caption))
            before = {name: weight.detach().clone() for name, weight in weights.items()}
            noise, done = self.noise(args), len(seen.rewards)
            step.run(number, noise, mid)
            self.tensors[f"train3.s{number}.noise_bf16"] = noise
            rows.append(
                {
                    "step": number,
                    "mid": mid,
                    "caption_index": caption,
                    "branch_losses": list(step.branch_losses),
                    "branch_rewards": seen.rewards[done:],
                    "grad_norm": step.grad_norm,
                    "delta": {name: figures(w.detach() - before[name]) for name, w in weights.items()},
                }
            )
        self.tensors |= {f"train3.final.{name}": weights[name].detach().clone() for name in FINAL}
        return {"args": args, "steps": rows, **OPTIMIZER}

    def components(self):
        """Schedules, discounts, packing, ids and an Euler step, from their formulas."""
        args, _ = self.cases["hps.mid500"]
        step = LiteralStep(self.spec(args, 0))
        torch.autograd.set_detect_anomaly(False)
        latents = torch.randn(1, 16, 6, 10, generator=self.generator)
        packed = torch.randn(1, 15, 64, generator=self.generator)
        pred = torch.randn(1, 15, 64, generator=self.generator)
        sigmas = shifted_schedule(25, 3.0)
        ids = torch.tensor([[0, row, column] for row in range(3) for column in range(5)])
        self.tensors |= {
            "comp.sigmas_n25_shift3.0": sigmas,
            "comp.sigmas_n50_shift3.0": shifted_schedule(50, 3.0),
            "comp.sigmas_l_5_25_1000": step.grid,
            "comp.discount_pos": torch.linspace(*args["discount_pos"], 1000),
            "comp.discount_inv": torch.linspace(*args["discount_inv"], 1000),
            "comp.pack.in": latents,
            "comp.pack.out": tokens_of(latents),
            "comp.unpack.out_h48_w80": latents,
            "comp.ids_3x5": ids,
            "comp.flux_step.latent": packed,
            "comp.flux_step.pred": pred,
            "index_table.hps": index_table(self.spec(args, 0)),
            "index_table.r05_N200": index_table(self.spec(self.cases["ga4.mid100"][0], 0)),
        }
        for i in (0, 12, 24):
            self.tensors[f"comp.flux_step.out_{i}"] = packed + (sigmas[i + 1] - sigmas[i]) * pred
        return {
            "rollout25": [int(sigma * 1000) for sigma in sigmas],
            "rollout50": [int(sigma * 1000) for sigma in shifted_schedule(50, 3.0)],
            "train_5_25": [int(sigma * 1000) for sigma in step.grid],
        }


def main(directory, seed):
    from literal_step import COMPUTER_GRAPHICS, REALISM

    torch.set_num_threads(1)
    maker = Maker(seed)
    words = {
        str(step): (REALISM[step % len(REALISM)], COMPUTER_GRAPHICS[step % len(COMPUTER_GRAPHICS)])
        for step in range(1, 21)
    }
    golden = {
        "configs": maker.configs,
        "captions": CAPTIONS,
        "control_words": words,
        "cases": {name: maker.case(name, number) for number, name in enumerate(maker.cases)},
        "timestep_ints": maker.components(),
        "train3": maker.three_steps(),
    }
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous().clone() for name, tensor in sorted(maker.tensors.items())}
    save_file(tensors, directory / "golden.safetensors")
    (directory / "golden.json").write_text(json.dumps(golden, sort_keys=True) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args()
    with frequencies_rounded_from_float64():
        main(given.directory, given.seed)
