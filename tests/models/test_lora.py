import shutil
from contextlib import closing
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from srpo_core.artifacts import LORA_FILE
from srpo_core.config import LoraSettings, load_settings
from srpo_core.errors import ArtifactError, ConfigError
from srpo_core.models import LoadedBase, files_to_load, load_base, loading, write_transformer
from srpo_core.models.lora import add_lora, initial_weights, initialize_lora, write_lora
from srpo_core.protocols import Condition
from srpo_core.training.state import trained_parameters
from srpo_core.weights.adapters import adapters_file, merge_adapters, read_adapters
from srpo_core.weights.files import WEIGHTS
from srpo_core.weights.shards import write_shards

BASE = Path("assets/tiny/family/base/transformer")
ROOT = Path(__file__).resolve().parents[2]
TARGETS = ["to_q", "to_v", "net.2", "proj_out"]
SETTINGS = LoraSettings(rank=4, alpha=8, targets=TARGETS, frozen="float32")


@pytest.fixture
def base(monkeypatch):
    monkeypatch.chdir(ROOT)
    return load_base(load_settings(Path("profiles/tiny.yaml")).model)


@pytest.fixture
def adapted(base):
    add_lora(base.transformer, SETTINGS)
    initialize_lora(base.transformer, seed=0)
    return base


def with_random_adapters(transformer):
    """Change the adapters, as training does."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trained_parameters(transformer).values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def inputs(base):
    """A condition of two prompts, and latents (2, S, C)."""
    generator = torch.Generator().manual_seed(0)
    config = base.transformer.config
    condition = Condition(
        {
            "prompt_embeds": torch.randn(2, 12, config.joint_attention_dim, generator=generator),
            "pooled_prompt_embeds": torch.randn(2, config.pooled_projection_dim, generator=generator),
        }
    )
    return condition, torch.randn(2, *base.latent_shape, generator=generator)


def images(base):
    condition, noise = inputs(base)
    return base.generate(condition, noise, num_inference_steps=4, guidance_scale=3.5)


def velocity(base):
    condition, latents = inputs(base)
    with torch.no_grad():
        return base.velocity(latents, torch.tensor([0.3, 0.8]), 3.5, condition)


def test_new_adapters_change_nothing_and_only_they_are_trained(base):
    before = velocity(base)
    add_lora(base.transformer, SETTINGS)
    initialize_lora(base.transformer, seed=0)
    assert torch.equal(velocity(base), before)
    names = trained_parameters(base.transformer)
    assert names
    assert all(".lora_" in name for name in names)
    assert not any(name.startswith("proj_out") for name in names), "only layers within blocks"


def test_diffusers_loads_the_adapters_and_gives_the_same_output(adapted, tmp_path):
    from diffusers import FluxPipeline

    with_random_adapters(adapted.transformer)
    with_adapters = velocity(adapted)
    write_lora(trained_parameters(adapted.transformer), SETTINGS, tmp_path)
    pipeline = FluxPipeline.from_pretrained("assets/tiny/family/base", text_encoder=None, text_encoder_2=None)
    pipeline.load_lora_weights(tmp_path)
    fresh = load_base(load_settings(Path("profiles/tiny.yaml")).model)
    fresh.transformer = pipeline.transformer
    assert torch.allclose(velocity(fresh), with_adapters, atol=1e-5)


def test_writing_adapters_twice_gives_the_same_bytes(adapted, tmp_path):
    contents = [
        write_lora(trained_parameters(adapted.transformer), SETTINGS, tmp_path / str(i)).read_bytes()
        for i in range(3)
    ]
    assert contents[0] == contents[1] == contents[2]


def test_initial_adapter_weights_depend_only_on_seed_and_name():
    a = initial_weights("x.lora_A.default.weight", (4, 16), 0)
    assert torch.equal(a, initial_weights("x.lora_A.default.weight", (4, 16), 0))
    assert not torch.equal(a, initial_weights("y.lora_A.default.weight", (4, 16), 0))
    assert not torch.equal(a, initial_weights("x.lora_A.default.weight", (4, 16), 1))
    assert float(a.abs().max()) <= 0.25
    assert not initial_weights("x.lora_B.default.weight", (16, 4), 0).any()


def test_an_unknown_target_raises_an_error_that_lists_the_known_ones(base):
    with pytest.raises(ConfigError, match=r"no layer 'to_x': known are .*attn\.to_q"):
        add_lora(base.transformer, SETTINGS.model_copy(update={"targets": ["to_x"]}))


@pytest.fixture
def checkpoint(adapted, tmp_path):
    """A checkpoint of adapters as training exports it, and the velocity that training's model predicts."""
    with_random_adapters(adapted.transformer)
    write_shards(tmp_path / "shards", trained_parameters(adapted.transformer))
    settings = load_settings(Path("profiles/tiny.yaml"))
    train = settings.train.model_copy(update={"tune": "lora", "lora": SETTINGS})
    write_transformer(settings.model, train, tmp_path / "shards", tmp_path / "out")
    return tmp_path / "out", velocity(adapted)


def merged(checkpoint, tmp_path):
    merge_adapters(BASE, adapters_file(checkpoint), tmp_path / "merged")
    return tmp_path / "merged"


def test_a_checkpoint_of_adapters_has_no_copy_of_the_base(checkpoint):
    directory, _ = checkpoint
    assert sorted(path.name for path in directory.iterdir()) == ["config.json", LORA_FILE]
    assert directory.joinpath("config.json").read_bytes() == (BASE / "config.json").read_bytes()


def test_adapters_on_the_base_and_merged_weights_predict_and_generate_the_same(checkpoint, tmp_path):
    directory, trained = checkpoint
    settings = load_settings(Path("profiles/tiny.yaml")).model
    on, whole = load_base(settings, directory), load_base(settings, merged(directory, tmp_path))
    assert not any(parameter.requires_grad for parameter in on.transformer.parameters())
    for model in (on, whole):
        assert torch.allclose(velocity(model), trained, atol=1e-5)
    pixels = [images(model) for model in (on, whole)]
    assert (pixels[0] - pixels[1]).abs().max() < 1e-4
    assert (pixels[0] - images(load_base(settings))).abs().max() > 0.1


def test_merging_into_a_bfloat16_base_writes_sums_in_float32(checkpoint, tmp_path):
    directory, _ = checkpoint
    half = load_base(load_settings(Path("profiles/tiny.yaml")).model).transformer.bfloat16()
    half.save_pretrained(tmp_path / "half")
    merge_adapters(tmp_path / "half", adapters_file(directory), tmp_path / "merged")
    before, after = (load_file(tmp_path / name / WEIGHTS) for name in ("half", "merged"))
    assert {value.dtype for value in before.values()} == {torch.bfloat16}
    pairs = read_adapters(adapters_file(directory))
    for name, weight in after.items():
        expected = before[name].float()
        if (pair := pairs.get(name.removesuffix(".weight"))) is not None:
            expected = expected + pair[1] @ pair[0]
        assert weight.dtype == torch.float32
        assert torch.allclose(weight, expected, atol=1e-6), name


@pytest.mark.parametrize("offload", [False, True])
def test_one_loaded_base_generates_as_each_model_in_turn(checkpoint, tmp_path, monkeypatch, offload):
    directory, trained = checkpoint
    twice = tmp_path / "twice"
    shutil.copytree(directory, twice)
    tensors = load_file(twice / LORA_FILE)
    doubled = {name: 2 * value if "lora_B" in name else value for name, value in tensors.items()}
    save_file(doubled, twice / LORA_FILE)
    settings = load_settings(Path("profiles/tiny.yaml"))
    read, honest = [], loading.load_transformer

    def watched(entry, path, **options):
        read.append(path)
        return honest(entry, path, **options)

    monkeypatch.setattr(loading, "load_transformer", watched)
    whole = merged(directory, tmp_path)
    with closing(LoadedBase(settings.model, settings.generate, offload=offload)) as loaded:
        found = [
            velocity(loaded.as_model(path, torch.device("cpu")))
            for path in (None, directory, twice, None, directory, whole, None)
        ]
    plain, once, double, again, once_more, by_weights, last = found
    # offloaded weights are loaded anew, others are read into the transformer in memory
    assert read == ([BASE, whole, BASE] if offload else [BASE])
    assert torch.equal(plain, again)
    assert torch.equal(plain, last)
    assert torch.equal(once, once_more)
    assert torch.allclose(once, trained, atol=1e-5)
    assert torch.allclose(once, by_weights, atol=1e-5)
    assert (double - plain).norm() > 1.5 * (once - plain).norm() > 0


def cut_inputs(tensors):
    tensors.update({name: value[:, 1:].contiguous() for name, value in tensors.items() if "lora_A" in name})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.popitem(), "is no file of adapters: each layer needs"),
        (lambda tensors: tensors.clear(), "it has no tensor"),
        (cut_inputs, "of another base"),
    ],
)
def test_adapters_that_do_not_fit_are_refused_by_loading_and_merging(checkpoint, tmp_path, change, message):
    directory, _ = checkpoint
    tensors = load_file(directory / LORA_FILE)
    change(tensors)
    save_file(tensors, directory / LORA_FILE)
    with pytest.raises(ArtifactError, match=message):
        load_base(load_settings(Path("profiles/tiny.yaml")).model, directory)
    with pytest.raises(ArtifactError, match=message):
        merged(directory, tmp_path)


def test_the_weights_of_adapters_and_of_their_base_are_among_the_files_to_load(checkpoint):
    directory, _ = checkpoint
    found = files_to_load(load_settings(Path("profiles/tiny.yaml")).model, directory)
    assert {directory / LORA_FILE, BASE / WEIGHTS} <= set(found)
