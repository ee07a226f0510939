"""Load the golden vectors of the reference step as inputs of the training code."""

import json
import os
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from unittest.mock import patch

import torch
from safetensors.torch import load_file, save_file

from srpo_core.algorithm.method import TrainBatch
from srpo_core.config import TrainSettings, load_settings, patched
from srpo_core.models.base import Base
from srpo_core.models.flux import POOLED_EMBEDS, PROMPT_EMBEDS, Flux, pack
from srpo_core.protocols import Condition

ROOT = Path(__file__).parents[1]
SUBSET = ROOT / "tests/golden"
FULL = ROOT.parent / "shared/golden"
REFERENCE_GUIDANCE = 3.5  # hard-coded there
REFERENCE_MARGIN = 0.7
PLAIN = {
    "autocast": False,
    "gather_rollout": False,
    "checkpoint_blocks": 0.0,
    "checkpoint_decode": False,
    "compile": False,
    "attention": "native",
    "tf32": False,
    "fused_optimizer": False,
}
REWARD = 2e-6  # of the scorer's scale: with AVX-512, PickScore on vectors of another seed was off by 1.5e-6
SCORERS = {"hps": "hps_v2", "pickscore": "pick_score"}


def reward_scale(scorer, k):
    """Return the factor by which errors of features grow in a relative reward: 61 in the case with extreme discounts."""
    return max(1.0, scorer.scale * abs(1 + k))


def reward_tolerance(scorer, k):
    """Return how far a relative reward may be from the reference's."""
    return REWARD * reward_scale(scorer, k)


def directories():
    """Return SRPO_GOLDEN_DIR if it is set, else the subset in tests/golden and the full set if it is available."""
    if given := os.environ.get("SRPO_GOLDEN_DIR"):
        return [Path(given)]
    return [SUBSET, *([FULL] if FULL.is_dir() else [])]


@contextmanager
def frequencies_rounded_from_float64():
    """Make the frequencies of diffusers' embedding of time and guidance the same on every CPU.

    The float32 exponential differs in its last bit between MKL's code paths. Guidance 3.5 is embedded at angles up
    to 3,500, where that bit of one frequency changes the gradient of the embedder's first layer by 2.3e-5.
    """
    from diffusers.models import embeddings

    exp, given = torch.exp, embeddings.get_timestep_embedding

    def rounded_once(*args, **kwargs):
        with patch.object(torch, "exp", lambda x: exp(x.double()).to(x.dtype)):
            return given(*args, **kwargs)

    with patch.object(embeddings, "get_timestep_embedding", rounded_once):
        yield


class OneMidpoint:
    """Draws that always return the same integer."""

    def __init__(self, midpoint):
        self.midpoint = midpoint

    def integers(self, *_):
        return [self.midpoint]


class Golden:
    """The vectors of a directory, and the models that they were computed with."""

    def __init__(self, directory):
        self.name = directory.parent.name if directory == FULL else directory.name
        self.tensors = load_file(directory / "golden.safetensors")
        self.json = json.loads((directory / "golden.json").read_text())
        self.cases = self.json["cases"]

    def __getitem__(self, name):
        return self.tensors[name]

    def __contains__(self, name):
        return name in self.tensors

    def state(self, prefix):
        """Return a model's weights; if only the used rows of the token table are stored, the others are zero."""
        state = {n.removeprefix(prefix): t for n, t in self.tensors.items() if n.startswith(prefix)}
        for name in [n for n in state if n.endswith("token_embedding.weight") and "token_rows" in self]:
            rows = self.json["configs"]["hps_open_clip"]["text_cfg"]["vocab_size"]
            table = torch.zeros(rows, state[name].shape[1])
            table[self["token_rows"]] = state[name]
            state[name] = table
        return state

    def base(self, width, height):
        from diffusers import AutoencoderKL, FluxTransformer2DModel

        transformer = FluxTransformer2DModel(**self.json["configs"]["flux"])
        transformer.load_state_dict(self.state("model.flux."))
        vae = AutoencoderKL(**self.json["configs"]["vae"])
        missing, unexpected = vae.load_state_dict(self.state("model.vae."), strict=False)
        assert not unexpected
        assert not [name for name in missing if not name.startswith("encoder.")]  # no step encodes images
        return Base(Flux(vae, None, height=height, width=width), transformer.train(), vae)

    @cached_property
    def rewards(self):
        """Both scorers by the reference's names, loaded from files as users do."""
        from tempfile import TemporaryDirectory

        from srpo_core.config import ScorerSettings
        from srpo_core.scorers import load_reward

        configs = self.json["configs"]
        with TemporaryDirectory() as directory:
            root = Path(directory)
            written = {"hps": configs["hps_open_clip"]}
            if "pickscore_hf_clip" in configs:
                written["pickscore"] = configs["pickscore_hf_clip"] | {"model_type": "clip"}
            for name, config in written.items():
                (root / name).mkdir()
                save_file(self.state(f"model.{name}."), root / name / "model.safetensors")
                (root / name / "config.json").write_text(json.dumps(config))
            return {
                name: load_reward(ScorerSettings(scorer=SCORERS[name], path=str(root / name)))
                for name in written
            }

    def settings(self, args, *, calls, guidance, steps, **changes):
        """Return settings under which training equals the reference's with `args` and `calls` model calls."""
        tiny = load_settings(ROOT / "profiles/tiny.yaml").train.model_dump()
        first, last = args["train_timestep"]
        patch = {
            "method": "srpo",
            "reference": True,
            "batch_size": 1,
            "batch_branches": False,
            "micro_batch_size": None,
            "pairs_per_rollout": 1,
            "compute": PLAIN,
            "rollout": {
                "source": "online",
                "num_inference_steps": steps,
                "shift": args["shift"],
                "guidance_scale": guidance,
            },
            "direct_align": {
                "grid": args["timestep_length"],
                "schedule_steps": args["vis_sampling_step"],
                "first": first,
                "last": last,
                "ratio": args["groundtruth_ratio"],
                "guidance_scale": REFERENCE_GUIDANCE,
                "discount_denoise": args["discount_pos"],
                "discount_inversion": args["discount_inv"],
                "branches": ["denoise" if left % 2 else "inversion" for left in reversed(range(calls))],
                "margin": REFERENCE_MARGIN,
            },
        }
        return TrainSettings.model_validate(patched(patched(tiny, patch), changes))

    def case_settings(self, name, **changes):
        case = self.cases[name]
        return self.settings(
            case["args"],
            calls=len(case["branches"]),
            guidance=case["rollout_guidance"],
            steps=len(case["rollout_timestep_ints"]),
            **changes,
        )

    def case_base(self, name):
        case = self.cases[name]
        size = (case["args"]["w"], case["args"]["h"])
        return self.base(*([case["args"]["vis_size"]] * 2 if case["visualization_step"] else size))

    def case_batch(self, name):
        case = self.cases[name]
        noise = self[f"{case['rollout']}.noise_bf16"]
        return self.batch(noise, case["caption_index"], case["step"], case["mid_timestep"])

    def batch(self, noise, caption, step, midpoint):
        wanted, unwanted = self.json["control_words"][str((step - 1) % 20 + 1)]  # they repeat after 20 steps
        return TrainBatch(
            prompts=[self.json["captions"][caption]],
            condition=Condition(
                {
                    PROMPT_EMBEDS: self["input.encoder_hidden_states"][caption : caption + 1],
                    POOLED_EMBEDS: self["input.pooled_prompt_embeds"][caption : caption + 1],
                }
            ),
            noise=pack(noise).float(),
            draws=OneMidpoint(midpoint),
            given={},
            wanted=wanted,
            unwanted=unwanted,
        )
