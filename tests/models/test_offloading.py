"""What offloading to pinned memory costs the host; on a GPU, `make gpu-smoke` compares it with torch's own count."""

import pytest
import torch

from srpo_core.config import load_settings
from srpo_core.models import load_base
from srpo_core.models.offloading import pin_blocks, pinned_size
from srpo_core.models.sharding import blocks


@pytest.fixture
def transformer(monkeypatch, request):
    root = request.config.rootpath
    monkeypatch.chdir(root)
    return load_base(load_settings(root / "profiles/tiny.yaml").model).transformer


def test_pinned_memory_is_reserved_in_powers_of_two():
    assert [pinned_size(count) for count in (1, 2, 3, 4, 5, 3072 * 3072)] == [1, 2, 4, 4, 8, 4096 * 4096]


def test_the_blocks_are_pinned_one_tensor_at_a_time_and_diffusers_copies_none_of_them_again(
    transformer, monkeypatch
):
    """Pinning needs a GPU; here it copies to other memory of the host, and as in torch not what is pinned already."""
    from diffusers.hooks.group_offloading import ModuleGroup

    of_blocks = [one for block in blocks(transformer) for one in block.parameters()]
    pinned = {}

    def pin(tensor):
        if tensor.data_ptr() in pinned:
            return tensor
        replaced = sum(one.data_ptr() in pinned for one in of_blocks)
        assert replaced == len(pinned), "of what was pinned before, the first copy is no longer held"
        copy = tensor.clone()
        pinned[copy.data_ptr()] = copy
        return copy

    values = [one.data.clone() for one in of_blocks]
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    pin_blocks(transformer)
    assert len(pinned) == len(of_blocks)
    assert all(torch.equal(one, value) for one, value in zip(of_blocks, values, strict=True))
    for block in blocks(transformer):
        group = ModuleGroup(
            [block],
            torch.device("cpu"),
            torch.device("cpu"),
            offload_leader=block,
            stream=torch.Stream("cpu"),
        )
        assert {tensor.data_ptr() for tensor in group.cpu_param_dict.values()} <= pinned.keys()
        assert len(group.cpu_param_dict) == len(list(block.parameters()))
    assert len(pinned) == len(of_blocks), "no second copy"
