"""Run a check on drawn examples: the same ones in every run, or those of a seed, which a failing test prints."""

import os
import random

import hypothesis
from hypothesis import HealthCheck, given, settings

SEED = "HYPOTHESIS_SEED"


def chosen_seed(option):
    """Return the seed of --hypothesis-seed or of HYPOTHESIS_SEED, or a new one, and print it."""
    found = option or os.environ.get(SEED) or random.SystemRandom().randrange(2**32)
    print(f"{SEED}={found} repeats these examples")
    return int(found)


def fuzz(check, strategy, examples, seed=None, **options):
    """Call `check` with `examples` values of the strategy. seed: None draws the same ones in every run."""
    drawn = given(strategy)(check)
    if seed is not None:
        drawn = hypothesis.seed(seed)(drawn)
    chosen = settings(
        max_examples=examples,
        derandomize=seed is None,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        **options,
    )
    chosen(drawn)()
