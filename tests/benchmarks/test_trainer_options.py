from pathlib import Path

import pytest

from srpo_core.config import load_settings

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def trainer_options(benchmark_named):
    return benchmark_named("trainer_options")


def test_every_option_is_a_valid_change_of_the_settings(trainer_options):
    settings = load_settings(ROOT / "profiles/tiny.yaml")
    made = [trainer_options.with_quirk(settings, option, 20) for option in trainer_options.OPTIONS]
    assert all(one != made[0] for one in made[1:])


def test_the_table_of_the_docs_has_a_row_for_each_option(trainer_options):
    text = (ROOT / "docs/training.md").read_text(encoding="utf-8")
    table = text.partition("benchmarks/trainer_options.py")[2].partition("\n\n## ")[0]
    for option in trainer_options.OPTIONS:
        assert f"| {option.name} |" in table
