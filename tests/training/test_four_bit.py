"""Adapters on a base in 4 bits (QLoRA)."""

from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch

from srpo_core.config import load_settings
from srpo_core.models import load_trainable
from srpo_core.models.four_bit import bytes_in_four_bits
from srpo_core.models.sharding import blocks
from srpo_core.plan import GB, TERA, Cluster, make_plan
from srpo_core.runtime.shared_files import Location
from srpo_core.training.checkpoint import newest_checkpoint
from srpo_core.training.worker import Worker
from srpo_core.weights.shards import read_whole

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def adapters(job):
    """A function from the type of the frozen weights to a short job that trains adapters on them."""

    def of(frozen):
        lora = job.train.lora.model_copy(update={"frozen": frozen})
        compute = job.train.compute.model_copy(update={"autocast": True})
        changes = {"tune": "lora", "lora": lora, "compute": compute}
        return replace(job, train=job.train.model_copy(update=changes))

    return of


def run(job):
    Worker(job, rank=0, world=1, device=CPU).run()
    return newest_checkpoint(job.state, count(2, 2))


def trained(checkpoint):
    return read_whole(checkpoint.location.path / "weights")


def test_training_on_a_base_in_4_bits_is_close_to_bfloat16_and_resumes_with_the_same_bits(adapters, tmp_path):
    four = adapters("nf4")
    straight = run(four)
    half = run(replace(adapters("bfloat16"), state=Location.of(tmp_path / "half")))
    losses = torch.tensor([[row["loss"] for row in one.metrics] for one in (straight, half)])
    assert torch.allclose(losses[0], losses[1], rtol=0.1)
    assert (losses[0] != losses[1]).all(), "the two bases differ"
    moved = {name: tensor for name, tensor in trained(straight).items() if ".lora_B." in name}
    assert all(tensor.any() for tensor in moved.values()), "each adapter was at zero"
    other = replace(four, state=Location.of(tmp_path / "interrupted"))
    run(replace(other, train=other.train.model_copy(update={"steps": 2})))
    resumed = run(replace(other, resume=2))
    assert resumed.metrics == straight.metrics
    expected = trained(straight)
    assert {name: torch.equal(tensor, expected[name]) for name, tensor in trained(resumed).items()} == (
        dict.fromkeys(expected, True)
    )


def bytes_of(parameter):
    """Return the bytes of a parameter, with the scales and tables of one in 4 bits."""
    parts = [parameter]
    if parameter.dtype == torch.uint8:
        state = parameter.quant_state
        parts += [state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
    return sum(one.numel() * one.element_size() for one in parts)


def test_the_plan_has_the_memory_of_a_base_in_4_bits(adapters):
    job = adapters("nf4")
    settings = load_settings(ROOT / "profiles/tiny.yaml").model_copy(update={"train": job.train})
    plan = make_plan(settings, Cluster(1, GB, None, 0.4, TERA, GB))
    loaded = load_trainable(job.model, job.train, seed=0, device=CPU).transformer
    assert plan.memory["parameters"] == sum(map(bytes_of, loaded.parameters()))


def test_the_matrices_of_the_blocks_are_in_4_bits_and_all_else_in_bfloat16(adapters, job):
    from bitsandbytes.functional import dequantize_4bit

    four, half = (
        load_trainable(job.model, adapters(frozen).train, seed=0, device=CPU).transformer
        for frozen in ("nf4", "bfloat16")
    )
    exact, layers = dict(half.named_parameters()), 0
    for name, parameter in four.named_parameters():
        if parameter.dtype == torch.uint8:
            state = parameter.quant_state
            assert (state.quant_type, state.blocksize, state.nested) == ("nf4", 64, True)
            assert bytes_of(parameter) == bytes_in_four_bits(exact[name].numel())
            weights = dequantize_4bit(parameter.data, state)
            assert weights.shape == exact[name].shape
            assert 0.02 < (weights - exact[name]).norm() / exact[name].norm() < 0.15
            layers += 1
        else:
            assert torch.equal(parameter, exact[name]), name
            assert parameter.dtype == (torch.float32 if ".lora_" in name else torch.bfloat16), name
    linear = [
        one for block in blocks(half) for name, one in block.named_modules() if type(one) is torch.nn.Linear
    ]
    assert layers == len([one for one in linear if one.weight.dtype == torch.bfloat16])


def test_reading_in_4_bits_holds_one_block_in_bfloat16_at_a_time(job, monkeypatch):
    from srpo_core.models import four_bit, loading
    from srpo_core.models.registry import base_entry

    transformer = loading.empty_transformer(
        base_entry(job.model), job.inputs.path / job.model.path / "transformer"
    )
    sizes, honest = [], four_bit.read_shards

    def watched(directory, tensors):
        sizes.append(
            sum(t.numel() for t in transformer.parameters() if not t.is_meta and t.dtype == torch.bfloat16)
        )
        honest(directory, tensors)

    monkeypatch.setattr(four_bit, "read_shards", watched)
    whole = sum(one.numel() for one in transformer.parameters())
    largest = max(sum(one.numel() for one in block.parameters()) for block in blocks(transformer))
    four_bit.read_in_four_bits(transformer, job.inputs.path / job.model.path / "transformer", CPU)
    assert not any(one.is_meta for one in transformer.parameters())
    assert len(sizes) == len(blocks(transformer)) + 1
    assert max(sizes) < 1.1 * largest < 0.4 * whole
