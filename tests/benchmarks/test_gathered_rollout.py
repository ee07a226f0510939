import json
from argparse import Namespace

import pytest


@pytest.fixture(scope="module")
def gathered_rollout(benchmark_named):
    return benchmark_named("gathered_rollout")


def test_a_rank_measures_both_ways_and_their_latents_are_equal(
    gathered_rollout, tmp_path, monkeypatch, capsys
):
    """One rank in this process: the model is sharded all the same, and gathered at each step or once."""
    from srpo_core.models import base

    kept, keep_gathered = [], base.keep_gathered
    monkeypatch.setattr(base, "keep_gathered", lambda model: kept.append(model) or keep_gathered(model))
    monkeypatch.chdir(tmp_path)  # the rank changes into the checkout
    gathered_rollout.one_rank(
        0, Namespace(ranks=1, steps=2, images=1, rounds=1), f"file://{tmp_path}/meeting"
    )
    found = json.loads(capsys.readouterr().out)
    assert found["bit-equal latents"] is True
    assert set(found) == {"gathered at each step", "gathered once", "ratio", "bit-equal latents"}
    assert all(found[way] >= 0 for way in ("gathered at each step", "gathered once"))
    assert len(kept) == 2, "a warm-up and one round, once in each"
