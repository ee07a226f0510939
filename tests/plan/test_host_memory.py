from pathlib import Path

import pytest

from srpo_core.config import load_settings
from srpo_core.plan import Case, Cluster, Counts, Plan, Sizes
from srpo_core.plan.counting import Forward

PROFILE = Path(__file__).resolve().parents[2] / "profiles/flux1_dev.yaml"
BASE, REST, PINNED, VAE, REWARD, ENCODERS = 12e9, 0.05e9, 18e9, 0.1e9, 1e9, 5e9


@pytest.fixture
def planned():
    """Return a plan of `flux1_dev` with sizes of round numbers; the counted calls do not matter here."""

    def plan(*, gpus=8, node_gpus=8, **resources):
        settings = load_settings(PROFILE)
        settings = settings.model_copy(
            update={
                "resources": settings.resources.model_copy(update={"generate_workers": gpus, **resources})
            }
        )
        sizes = Sizes(
            all=BASE, trained=BASE, block=0.3e9, trained_of_block=0.3e9, rest=REST, pinned=PINNED, vae=VAE, reward=REWARD,
            encoders=ENCODERS, matrices=0, in_four_bits=0, largest_matrix=0,
        )  # fmt: skip
        nothing = Forward(0.0, 0)
        counts = Counts(None, {}, {}, nothing, nothing, nothing)
        cluster = Cluster(gpus, 80e9, None, 0.4, 1e15, 3e11, node_gpus=node_gpus)
        return Plan(Case(settings, cluster, sizes, counts))

    return plan


def total(plan, stage):
    return sum(plan.hosts[stage].values())


def test_each_process_that_generates_reads_the_base_into_the_memory_of_its_host(planned):
    assert planned(gpus=1).hosts["select"] == {"base": 2 * BASE}
    assert planned(gpus=8).hosts["select"] == {"base": 8 * 2 * BASE}
    assert planned(gpus=32).hosts["select"] == {"base": 8 * 2 * BASE}, "four hosts of eight"
    assert planned(gpus=32, node_gpus=4).hosts["select"] == {"base": 4 * 2 * BASE}


def test_a_base_that_is_offloaded_stays_beside_what_is_read_after_it(planned):
    """Its blocks are pinned, and take a power of two of memory for each tensor; without a GPU they are not."""
    plan = planned(gpus=1, offload=True)
    assert plan.hosts["evaluate"] == {"base": 2 * (PINNED + REST), "scorer": 4 * REWARD}
    assert plan.hosts["quantize"] == {
        "base": 4 * (PINNED + REST), "weights of a format": 4 * BASE, "scorer": 4 * REWARD,
    }  # fmt: skip
    plan = planned(gpus=1, use_gpu=False, offload=True)
    assert plan.hosts["evaluate"]["base"] == 2 * BASE
    assert plan.hosts["quantize"]["base"] == 4 * BASE


def test_without_a_gpu_all_models_stay_in_the_memory_of_the_host(planned):
    plan = planned(gpus=1, use_gpu=False)
    # hps_v2 as the reward, and the two judges
    assert total(plan, "evaluate") == 2 * BASE + 4 * VAE + 3 * 4 * REWARD
    assert total(plan, "quantize") == 2 * 4 * BASE + 4 * VAE + 2 * 4 * REWARD


def test_a_sharded_base_is_never_whole_in_the_memory_of_a_host(planned):
    assert planned(gpus=8, shard=True).hosts["train: loading"] == {"reward": 8 * 4 * REWARD}
    assert planned(gpus=8, shard=False).hosts["train: loading"] == {"base": 8 * 4 * BASE}


def test_weights_are_exported_in_portions_of_a_gigabyte(planned):
    assert planned().hosts["train: export"] == {"portion of the weights": 2**30}
