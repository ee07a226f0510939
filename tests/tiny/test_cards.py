"""Every model of the family has a model card with the figures measured by the recipe."""

import json

import pytest
import yaml


@pytest.fixture
def measured(tiny):
    return {path.stem: json.loads(path.read_text()) for path in (tiny / "recipe/figures").glob("*.json")}


@pytest.mark.parametrize("part", ["base", "reward", "judge_a", "judge_b"])
def test_a_card_states_licence_loader_and_measurements(
    recipe_module, monkeypatch, tiny, measured, tmp_path, part
):
    monkeypatch.chdir(tiny / "recipe")
    cards = recipe_module("cards")
    for name in cards.CARDS:
        (tmp_path / name).mkdir()
    cards.write_cards(tmp_path, measured)
    _, header, text = (tmp_path / part / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(header)["license"] == "apache-2.0"
    own = cards.CARDS[part]
    values = {key: value for stage in (*own.stages, "measure") for key, value in measured[stage].items()}
    for name in own.figures:
        assert f"| {name} | {values[name]:.3f} |" in text


def test_the_shipped_cards_contain_the_recorded_figures(recipe_module, monkeypatch, tiny, measured):
    monkeypatch.chdir(tiny / "recipe")
    cards = recipe_module("cards")
    for name, part in cards.CARDS.items():
        own = {key: value for stage in (*part.stages, "measure") for key, value in measured[stage].items()}
        assert (tiny / "family" / name / "README.md").read_text() == cards.card(part, own)
