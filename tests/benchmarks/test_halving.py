import pytest

from srpo_core.config import HalvingSettings, load_settings


@pytest.fixture(scope="module")
def halving(benchmark_named):
    """Return the benchmark, the honest seeds, and a function that simulates one setting."""
    module = benchmark_named("halving")
    select = load_settings(module.ROOT / "profiles/tiny.yaml").select
    runs = list(module.read_runs(module.SCORES, select))

    def line(rounds, distance):
        settings = HalvingSettings(rounds=rounds, distance=distance)
        return module.simulated(runs, select.model_copy(update={"halving": settings}), 100)

    return module, select, runs, line


def test_the_shipped_settings_choose_the_same_checkpoint_as_all_prompts_in_five_honest_seeds(halving):
    module, select, runs, _ = halving
    assert len(runs) == 5
    shares = []
    for run in runs:
        rows = range(len(run[0][select.maximize]))
        assert module.chosen_by(run, list(rows), select) == 30
        chosen, share = module.halved(run, list(rows), select)
        assert chosen == 30
        shares.append(share)
    assert max(shares) <= 1
    assert sum(shares) < 0.9 * len(shares)


def test_a_greater_distance_drops_less_and_more_often_keeps_the_choice(halving):
    *_, line = halving
    always, careful = line(3, 0.0), line(3, 2.0)
    assert always["images"] < careful["images"] < 1
    assert always["same"] < careful["same"] <= 1
    assert careful["lost"] <= always["lost"]
