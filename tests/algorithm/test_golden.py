"""Parity with the reference's own functions, through the code that trains.

The vectors in tests/golden are a subset; set SRPO_GOLDEN_DIR to compare with others of the same form.
"""

import json
import math
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from srpo_core.algorithm.direct_align import branches
from srpo_core.algorithm.rollout import rollout
from srpo_core.algorithm.schedule import shifted_sigmas, timestep, training_grid
from srpo_core.algorithm.srpo import TrainBatch, direct_align_terms, discounts
from srpo_core.config import DirectAlignSettings
from srpo_core.models.flux import FluxBase, pack, unpack
from srpo_core.protocols import Condition

GOLDEN = Path(os.environ.get("SRPO_GOLDEN_DIR", Path(__file__).parents[1] / "golden"))
CASE = "hps.mid500"
ELEMENTWISE = 1e-5
REWARD = 1e-6
GRADIENT = 1e-5
NUM_BRANCHES = 2


class Golden:
    """The vectors, and the models that they were made with."""

    def __init__(self, directory):
        self.tensors = load_file(directory / "golden.safetensors")
        self.json = json.loads((directory / "golden.json").read_text())
        self.case = self.json["cases"][CASE]

    def __getitem__(self, name):
        return self.tensors[name]

    def state(self, prefix):
        return {n.removeprefix(prefix): t for n, t in self.tensors.items() if n.startswith(prefix)}

    def base(self):
        from diffusers import AutoencoderKL, FluxTransformer2DModel

        transformer = FluxTransformer2DModel(**self.json["configs"]["flux"])
        transformer.load_state_dict(self.state("model.flux."))
        vae = AutoencoderKL(**self.json["configs"]["vae"])
        vae.load_state_dict(self.state("model.vae."))
        args = self.case["args"]
        return FluxBase(transformer.train(), vae, None, height=args["h"], width=args["w"])

    def reward(self):
        from open_clip import CLIP

        from srpo_core.scorers.open_clip import OpenClipReward

        config = self.json["configs"]["hps_open_clip"]
        state = self.state("model.hps.")
        if "token_rows" in self.tensors:
            table = torch.zeros(config["text_cfg"]["vocab_size"], config["text_cfg"]["width"])
            table[self["token_rows"]] = state["token_embedding.weight"]
            state["token_embedding.weight"] = table
        clip = CLIP(**config)
        clip.load_state_dict(state)
        return OpenClipReward(
            clip.float(), config["vision_cfg"]["image_size"], config["text_cfg"]["context_length"]
        )

    def settings(self):
        args = self.case["args"]
        first, last = args["train_timestep"]
        return DirectAlignSettings(
            grid=args["timestep_length"],
            schedule_steps=args["vis_sampling_step"],
            first=first,
            last=last,
            ratio=args["groundtruth_ratio"],
            guidance=3.5,
            discount_denoise=args["discount_pos"],
            discount_inversion=args["discount_inv"],
            margin=0.7,
        )

    def batch(self):
        index = self.case["caption_index"]
        wanted, unwanted = self.json["control_words"][str(self.case["step"])]
        return TrainBatch(
            prompts=[self.json["captions"][index]],
            condition=Condition(
                self["input.encoder_hidden_states"][index : index + 1],
                self["input.pooled_prompt_embeds"][index : index + 1],
            ),
            noise=self[f"{CASE}.noise_packed"].float(),
            midpoints=[self.case["mid_timestep"]],
            wanted=wanted,
            unwanted=unwanted,
        )


@pytest.fixture(scope="module")
def golden():
    return Golden(GOLDEN)


@pytest.fixture(scope="module")
def step(golden):
    """Run both branches as the trainer does and record what the model and the decoder saw."""
    base, reward, batch = golden.base(), golden.reward(), golden.batch()
    seen = {"noisy": [], "timestep": [], "pred": [], "recovered_packed": [], "image": []}
    velocity, decode = base.velocity, base.decode

    def recording_velocity(latents, time, guidance, condition):
        output = velocity(latents, time, guidance, condition)
        seen["noisy"].append(latents)
        seen["timestep"].append(time)
        seen["pred"].append(output.detach())
        return output

    def recording_decode(latents):
        images = decode(latents)
        seen["recovered_packed"].append(latents.detach())
        seen["image"].append(images.detach().clamp(0, 1))
        return images

    base.velocity, base.decode = recording_velocity, recording_decode
    settings = golden.settings()
    terms, gradients = [], []
    x0 = golden[f"{CASE}.latent_start"]
    for term in direct_align_terms(base, reward, x0, batch, settings, shift=golden.case["args"]["shift"]):
        term.losses.sum().backward()
        terms.append(term)
        gradients.append({n: p.grad.clone() for n, p in base.transformer.named_parameters()})
    return terms, gradients, seen


def relative_error(ours, theirs):
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


def probe(gradient):
    flat = gradient.double().flatten()
    return float((flat * torch.cos(0.37 * torch.arange(len(flat), dtype=torch.float64) + 0.1)).sum())


def test_the_rollout_ends_on_the_references_image(golden):
    base, batch, args = golden.base(), golden.batch(), golden.case["args"]
    sigmas = shifted_sigmas(args["sampling_steps"], args["shift"])
    assert torch.equal(sigmas, golden[f"{CASE}.rollout_sigmas"])
    x0 = rollout(
        base.velocity, batch.noise, batch.condition, sigmas=sigmas, guidance=golden.case["rollout_guidance"]
    )
    assert relative_error(x0, golden[f"{CASE}.latent_start"]) < ELEMENTWISE


@pytest.mark.parametrize("name", ["noisy", "pred", "recovered_packed", "image"])
@pytest.mark.parametrize("branch", range(NUM_BRANCHES))
def test_each_state_of_a_branch_equals_the_references(golden, step, branch, name):
    _, _, seen = step
    assert relative_error(seen[name][branch], golden[f"{CASE}.b{branch}.{name}"]) < ELEMENTWISE


@pytest.mark.parametrize("branch", range(NUM_BRANCHES))
def test_timestep_reward_and_loss_of_a_branch_equal_the_references(golden, step, branch):
    terms, _, seen = step
    expected = golden.case["branches"][branch]
    assert terms[branch].name == expected["kind"]
    assert seen["timestep"][branch].tolist() == expected["timestep_over_1000"]
    assert terms[branch].rewards.tolist() == pytest.approx(expected["reward"], abs=REWARD)
    assert float(terms[branch].losses.detach().sum()) == pytest.approx(expected["loss"], abs=REWARD)


@pytest.mark.parametrize("branch", range(NUM_BRANCHES))
def test_every_gradient_after_a_branch_equals_the_references(golden, step, branch):
    _, gradients, _ = step
    expected = golden.case["branches"][branch]["cumulative_grad"]
    assert expected.keys() == gradients[branch].keys()
    total = golden.case["branches"][branch]["cumulative_grad_total_norm"]
    for name, figures in expected.items():
        gradient = gradients[branch][name]
        slack = GRADIENT * max(figures["norm"], 1e-3 * total)
        assert float(gradient.double().norm()) == pytest.approx(figures["norm"], abs=slack), name
        # the probe sums signed entries, so its error scales with the norm times the number of entries' root
        assert probe(gradient) == pytest.approx(figures["probe"], abs=slack * math.sqrt(gradient.numel())), (
            name
        )


def test_the_index_table_of_every_midpoint_equals_the_references(golden):
    table = golden["index_table.hps"]
    settings, shift = golden.settings(), golden.case["args"]["shift"]
    grid = training_grid(settings.schedule_steps, shift, settings.first, settings.last, settings.grid)
    midpoints = table[::2, 0].int().tolist()
    for offset, (branch, ends) in enumerate(
        zip(
            branches(midpoints, settings.grid, settings.ratio),
            (settings.discount_denoise, settings.discount_inversion),
            strict=True,
        )
    ):
        rows = table[offset::2]
        assert branch.s.tolist() == rows[:, 2].tolist()
        assert branch.t.tolist() == rows[:, 3].tolist()
        assert (timestep(grid[branch.s]) * 1000).round().tolist() == rows[:, 4].tolist()
        assert torch.equal(discounts(ends, settings.grid)[branch.discount].double(), rows[:, 6])
        assert torch.equal(grid[branch.s].double(), rows[:, 7])
        assert torch.equal(grid[branch.t].double(), rows[:, 8])


def test_packing_is_undone_by_unpacking_and_equals_the_references(golden):
    noise = golden[f"{CASE}.noise_bf16"]
    packed = pack(noise)
    assert torch.equal(packed, golden[f"{CASE}.noise_packed"])
    assert torch.equal(unpack(packed, *noise.shape[-2:]), noise)
