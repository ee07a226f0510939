"""A base model is added by one file and one line in the registry; the example is a toy Stable Diffusion 3.

Its four text tensors, transformer and sampler differ from FLUX. The registry entry is enough to plan, train, resume,
export, evaluate, gate and report it.
"""

import inspect
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from known_pairs import write_known_pairs

from srpo_core import artifacts, models
from srpo_core.config import load_settings, parse_settings, patched, read_values
from srpo_core.errors import ConfigError
from srpo_core.models import registry
from srpo_core.models.architecture import BaseEntry
from srpo_core.models.autoencoder import decode, encode, latent_size
from srpo_core.models.embeddings import read_embeddings, write_embeddings
from srpo_core.protocols import Condition
from srpo_core.runtime.shared_files import Location
from srpo_core.training.job import TrainJob
from srpo_core.training.worker import Worker

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "assets/tiny/family/base"
PROMPTS = {
    "train": ["red apple", "crab", "tiger face", "penguin"],
    "validation": ["avocado", "axe"],
    "alarm": ["axe", "bread", "popcorn"],
    "test": ["rose", "alarm clock", "backpack"],
}
TEXT_TENSORS = (
    "prompt_embeds",
    "negative_prompt_embeds",
    "pooled_prompt_embeds",
    "negative_pooled_prompt_embeds",
)
CLIP_WIDTH = 32
POOLED_WIDTH = 16


class StableDiffusion3:
    """The architecture: latents without patches, and classifier-free guidance instead of a guidance embedding."""

    def __init__(self, vae, scheduler, *, height, width):
        self.scheduler, self.image_size = scheduler, (height, width)
        self.latent_size = latent_size(vae, height=height, width=width)
        self.latent_shape = (math.prod(self.latent_size), vae.config.latent_channels)

    def predict(self, transformer, latents, timestep, guidance, condition):
        given, empty = (
            self._velocity(transformer, latents, timestep, condition, p) for p in ("", "negative_")
        )
        return (empty + guidance * (given - empty)).float()

    def _velocity(self, transformer, latents, timestep, condition, prefix):
        return self._pack(
            transformer(
                hidden_states=self.unpack(latents),
                encoder_hidden_states=condition.tensors[f"{prefix}prompt_embeds"],
                pooled_projections=condition.tensors[f"{prefix}pooled_prompt_embeds"],
                timestep=1000 * timestep,
                return_dict=False,
            )[0]
        )

    def decode(self, vae, latents):
        return decode(vae, self.unpack(latents))

    def encode(self, vae, images):
        return self._pack(encode(vae, images))

    def unpack(self, latents):
        return latents.transpose(1, 2).unflatten(-1, self.latent_size)

    def _pack(self, latents):
        return latents.flatten(2).transpose(1, 2)

    def sample(self, transformer, vae, condition, noise, *, num_inference_steps, guidance_scale):
        from diffusers import StableDiffusion3Pipeline

        text = dict.fromkeys(f"{kind}{n}" for kind in ("text_encoder", "tokenizer") for n in ("", "_2", "_3"))
        pipeline = StableDiffusion3Pipeline(
            transformer=transformer, scheduler=self.scheduler, vae=vae, **text
        )
        pipeline.set_progress_bar_config(disable=True)
        height, width = self.image_size
        latents = pipeline(
            **condition.tensors,
            latents=self.unpack(noise),
            height=height,
            width=width,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            output_type="latent",
        ).images
        return self._pack(latents)


def encode_prompt(pipeline, prompts, *, max_sequence_length):
    tensors = pipeline.encode_prompt(
        prompt=list(prompts), prompt_2=None, prompt_3=None, max_sequence_length=max_sequence_length
    )
    return Condition(dict(zip(TEXT_TENSORS, tensors, strict=True)))


def condition_shapes(config, max_sequence_length):
    text = (1, 16 + max_sequence_length, config["joint_attention_dim"])  # both CLIP encoders, then T5
    pooled = (1, config["pooled_projection_dim"])
    return dict(zip(TEXT_TENSORS, (text, text, pooled, pooled), strict=True))


ENTRY = BaseEntry(
    pipeline="StableDiffusion3Pipeline",
    transformer="SD3Transformer2DModel",
    vae="AutoencoderKL",
    scheduler="FlowMatchEulerDiscreteScheduler",
    architecture=StableDiffusion3,
    encode_prompt=encode_prompt,
    condition_shapes=condition_shapes,
    release_formats=False,
)


def write_pipeline(directory):
    """A StableDiffusion3Pipeline with random weights, the VAE, T5 and tokenizers of the tiny family."""
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )
    from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModelWithProjection, T5EncoderModel

    torch.manual_seed(0)
    clip = CLIPTextConfig(
        vocab_size=2048,
        hidden_size=CLIP_WIDTH,
        intermediate_size=32,
        projection_dim=POOLED_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    clip_tokenizer = AutoTokenizer.from_pretrained(TINY / "tokenizer")
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=128,
        caption_projection_dim=32,
        pooled_projection_dim=2 * POOLED_WIDTH,
        out_channels=16,
        pos_embed_max_size=8,
    )
    StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=AutoencoderKL.from_pretrained(TINY, subfolder="vae"),
        text_encoder=CLIPTextModelWithProjection(clip),
        tokenizer=clip_tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(clip),
        tokenizer_2=clip_tokenizer,
        text_encoder_3=T5EncoderModel.from_pretrained(TINY / "text_encoder_2"),
        tokenizer_3=AutoTokenizer.from_pretrained(TINY / "tokenizer_2"),
    ).save_pretrained(directory)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A directory with the toy pipeline and the encoded prompts of each split, and the settings of a run."""
    root = tmp_path_factory.mktemp("project")
    (root / "assets").symlink_to(ROOT / "assets")
    write_pipeline(root / "toy")
    patch = {
        "model": {"base": "sd3", "path": "toy"},
        "generate": {"num_inference_steps": 2},
        "train": {
            "steps": 2,
            "batch_size": 2,
            "checkpoint_every": 1,
            "sample_prompts": 2,
            "rollout": {"num_inference_steps": 2},
            "early_stop": {"num_prompts": 3, "num_inference_steps": 2, "base_seeds": 2},
            "compute": {"checkpoint_blocks": 0.5, "gather_rollout": True},
        },
        "select": {"num_prompts": 2, "seeds_per_prompt": 2},
        "evaluate": {"num_prompts": 3, "seeds_per_prompt": 2, "real_images": 0},
    }
    settings = parse_settings(patched(read_values(ROOT / "profiles/tiny.yaml"), patch), "toy")
    gate = settings.gate
    rules = {name: rule for name, rule in gate.rules.items() if rule.metric != "kid"}
    metrics = [name for name in settings.evaluate.metrics if name != "kid"]
    settings = settings.model_copy(
        update={
            "gate": gate.model_copy(update={"rules": rules, "resamples": 1000}),
            "evaluate": settings.evaluate.model_copy(update={"metrics": metrics}),
        }
    )
    with pytest.MonkeyPatch.context() as patching:
        patching.chdir(root)
        patching.setenv("SRPO_HOME", str(root / ".srpo"))
        patching.setattr(registry, "BASES", {**registry.BASES, "sd3": ENTRY})  # the one line in the registry
        for split, prompts in PROMPTS.items():
            condition = models.encode_prompts(settings.model, prompts, batch_size=3)
            write_embeddings(split, prompts, ["animals"] * len(prompts), condition)
        write_known_pairs()
        yield root, settings


def train(settings, state, resume=0):
    """Train from a checkpoint to the last step of the settings; return worker and job."""
    job = TrainJob(
        inputs=Location.of(Path.cwd()),
        digests={},
        state=Location.of(state),
        base_images=Location.of(state / "base_images"),
        seed=settings.seed,
        model=settings.model,
        rewards=settings.rewards,
        select_judge=settings.select_judge,
        control_words=settings.control_words,
        train=settings.train,
        resources=settings.resources,
        resume=resume,
        attempt="test",
    )
    worker = Worker(job, rank=0, world=1, device=torch.device("cpu"))
    worker.run()
    return worker, job


def test_the_condition_of_the_new_base_is_read_back_unchanged_with_the_planned_shapes(project):
    _, settings = project
    prompts, _, condition = read_embeddings("test")
    assert prompts == PROMPTS["test"]
    again = models.encode_prompts(settings.model, prompts, batch_size=8)
    assert set(again.tensors) == set(condition.tensors) == set(TEXT_TENSORS)
    assert all(
        torch.allclose(condition.tensors[name], tensor, atol=1e-5) for name, tensor in again.tensors.items()
    )
    config = models.load_base(settings.model).transformer.config
    shapes = condition_shapes(config, settings.model.max_sequence_length)
    assert {name: tuple(tensor[:1].shape) for name, tensor in condition.tensors.items()} == shapes


def test_training_and_the_sampler_of_the_new_base_give_the_same_prediction(project):
    _, settings = project
    base = models.load_base(settings.model)
    condition = read_embeddings("test")[2]
    noise = torch.randn(3, *base.latent_shape, generator=torch.Generator().manual_seed(0))
    latents = base.generate_latents(condition, noise, num_inference_steps=1, guidance_scale=3.5)
    velocity = base.velocity(noise, torch.ones(3), 3.5, condition)
    assert torch.allclose(latents, noise - velocity, atol=1e-4)


def test_the_new_base_is_planned_from_its_registry_entry_and_configuration(project):
    from srpo_core.plan import Cluster, make_plan

    _, settings = project
    plan = make_plan(settings, Cluster(1, 80e9, 2.5, 0.4, 989e12, 300e9))
    transformer = models.load_base(settings.model).transformer
    assert plan.case.sizes.all == plan.case.sizes.trained == sum(p.numel() for p in transformer.parameters())
    assert plan.case.sizes.block == sum(p.numel() for p in transformer.transformer_blocks[0].parameters())
    assert plan.flops["rollout"] > 0
    assert plan.fits


def test_quantize_refuses_a_base_without_release_formats_with_a_one_line_error(project):
    _, settings = project
    with pytest.raises(ConfigError, match="release formats are not available for base model 'sd3'"):
        models.require_release_formats(settings.model)


def test_the_new_base_runs_from_training_to_the_report(project, tmp_path):
    from safetensors.torch import load_file

    from srpo_core.stages import evaluate, gate, report, select
    from srpo_core.training.export import export
    from srpo_core.weights.files import WEIGHTS
    from srpo_core.weights.shards import read_whole

    _, settings = project
    straight, _ = train(settings, tmp_path / "straight")
    first = settings.model_copy(update={"train": settings.train.model_copy(update={"steps": 1})})
    train(first, tmp_path / "resumed")
    resumed, job = train(settings, tmp_path / "resumed", resume=1)
    assert resumed.metrics == straight.metrics
    assert all(row["grad_norm"] > 0 for row in resumed.metrics)
    weights = [read_whole(tmp_path / name / "step-000002/weights") for name in ("straight", "resumed")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])

    words = {"prompts": 4, "wanted": {"Ink": 0}, "unwanted": {"3D": 0}}
    export(replace(job, resume=0), words)
    exported = load_file(artifacts.step_directory(2) / WEIGHTS)
    base = models.load_base(settings.model).transformer.state_dict()
    assert exported.keys() == base.keys()
    for (
        name,
        tensor,
    ) in exported.items():  # SD3 keeps position embeddings in a buffer, which training does not save
        assert torch.equal(tensor, weights[1].get(name, base[name])), name

    def run(stage, **changes):
        parts = {
            name: getattr(settings, name)
            for name in inspect.signature(stage.run).parameters
            if hasattr(settings, name)
        }
        stage.run(**parts | changes)

    run(select)
    run(evaluate)
    run(gate)
    artifacts.PROMPTS.write_bytes(b"the prompts of stage ingest")
    artifacts.write_json(
        artifacts.VALIDATION, {"records": {"read": {"train.json": 4}, "bad": 0, "rules": {}}}
    )
    artifacts.write_json(artifacts.AGREEMENT, {"pairs": 400, "agreement": 0.965, "low": 0.942, "high": 0.979})
    run(report)
    means = artifacts.read_json(artifacts.EVALUATION_SUMMARY)["means"]
    assert means["base"] != means["aligned"]
    assert all(math.isfinite(value) for of_model in means.values() for value in of_model.values())
    decision = artifacts.read_json(artifacts.DECISION)
    assert decision["verdict"] == "refused", "two steps on random weights teach no style"
    assert {rule["name"] for rule in decision["rules"]} <= set(
        load_settings(ROOT / "profiles/tiny.yaml").gate.rules
    )
    assert "Before and after" in artifacts.REPORT.read_text(encoding="utf-8")
    assert artifacts.GRID.stat().st_size > 0
