from pathlib import Path

import pytest
import torch

from srpo_core.config import EmaSettings, load_settings

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


def test_a_trial_judges_the_average_of_the_weights(trainer_options, job, tmp_path, monkeypatch):
    judged = []

    def figures(_settings, model, _images, _step):
        judged.append(torch.cat([p.detach().flatten() for p in model.transformer.parameters()]))
        return {}

    monkeypatch.setattr(trainer_options, "figures", figures)
    monkeypatch.setattr(trainer_options, "evaluation_images", lambda *_: None)
    train = job.train.model_copy(update={"steps": 3, "ema": EmaSettings(decay=0.5, start=0)})
    settings = trainer_options.absolute(load_settings(ROOT / "profiles/tiny.yaml"))
    settings = settings.model_copy(update={"train": train})
    _, before, released = trainer_options.trial(settings, tmp_path, seeds=2)
    assert torch.equal(judged[0], released)
    plain = settings.model_copy(update={"train": train.model_copy(update={"ema": None})})
    _, _, last = trainer_options.trial(plain, tmp_path, seeds=2)
    assert 0.5 < (released - before).norm() / (last - before).norm() < 0.98, (
        "an average is behind the weights"
    )
