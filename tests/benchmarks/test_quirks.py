"""Every measured quirk must change the part that it names, and be in the table of docs/algorithm.md."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from srpo_core.config import load_settings

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def quirks(benchmark_named):
    return benchmark_named("quirks")


def test_every_quirk_changes_the_settings_or_the_worker(quirks):
    settings = load_settings(ROOT / "profiles/tiny.yaml")
    plain = quirks.with_quirk(settings, quirks.QUIRKS[0], 3)
    assert plain.train.steps == plain.train.checkpoint_every == 3
    for quirk in quirks.QUIRKS[1:]:
        changed = quirks.with_quirk(settings, quirk, 3)
        assert (changed != plain) != (quirk.change is not quirks.nothing), quirk.name


def test_every_measured_quirk_is_in_the_table_of_the_docs(quirks):
    text = (ROOT / "docs/algorithm.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| (\w+) \|", text, re.MULTILINE))
    measured = {
        number.rstrip("ab") if number != "4b" else number
        for q in quirks.QUIRKS
        for number in q.number.split(", ")
    }
    assert measured - {"none"} <= listed


def test_bfloat16_time_above_512_thousandths_is_a_multiple_of_four_thousandths(quirks):
    seen = []
    model = SimpleNamespace(velocity=lambda latents, timestep, guidance, condition: seen.append(timestep))
    quirks.coarse_time(SimpleNamespace(model=model))
    model.velocity(None, torch.tensor([0.835, 0.878, 0.5]), 1.0, None)
    assert (seen[0] * 1000).round().tolist() == [836, 880, 500]


def test_a_discount_outside_the_reward_only_scales_it(quirks):
    from srpo_core.algorithm import METHODS
    from srpo_core.algorithm.srpo import relative_reward
    from srpo_core.training.learner import Learner

    texts = {"wanted": [1.0, 0.0], "unwanted": [0.6, 0.8]}
    reward = SimpleNamespace(
        score=lambda images, names: 2 * (torch.tensor([texts[name] for name in names]) * images).sum(1)
    )
    images, k = torch.tensor([[0.0, 1.0]]), torch.tensor([0.25])
    inside = relative_reward(reward, images, ["wanted"], ["unwanted"], k).total
    outside = quirks.multiplied_reward(reward, images, ["wanted"], ["unwanted"], k).total
    assert (inside.tolist(), outside.tolist()) == ([pytest.approx(-1.6)], [pytest.approx(-0.4)])

    def method(*_):
        yield METHODS["srpo"].run.__globals__["relative_reward"]

    worker = SimpleNamespace(learner=Learner(None, None, None, None, method))
    quirks.discount_outside(worker)
    assert list(worker.learner.method()) == [quirks.multiplied_reward]
    assert METHODS["srpo"].run.__globals__["relative_reward"] is relative_reward


def test_differences_are_written_to_the_rows_of_their_quirks(quirks):
    def row(number, what, wanted, cpu, instead=""):
        change = {"judge_wanted": wanted, "judge_top1": -0.025, "diversity": 0.0, "cpu_seconds": cpu}
        about = {"quirk": number, "what": what, "instead": instead}
        return {**about, "cpu_seconds": 0.5 + cpu, "change": change}

    rows = [
        row("none", "plain", 0.0, 0.0),
        row("4, 9, 16", "time", 0.02, 0.05),
        row("4b", "coarse", -0.3, 0.0),
    ]
    rows += [row("15a", "one", 0.1, -0.25), row("15b", "twice", 0.0, 0.5)]
    rows += [row("13", "autocast", 0.0, 0.0, instead="bf16")]
    page = "| # | quirk | effect |\n|---|---|---|\n| 4 | time | – |\n| 4b | bf16 | – |\n| 5 | x | – |\n"
    page += "| 13 | fp16 | – |\n| 15 | G | old |\n"
    assert quirks.with_effects(page, rows).splitlines()[2:] == [
        "| 4 | time | wanted +0.020, top-1 -0.025, diversity +0.000, CPU +10 % |",
        "| 4b | bf16 | wanted -0.300, top-1 -0.025, diversity +0.000, CPU +0 % |",
        "| 5 | x | – |",
        "| 13 | fp16 | bf16 in its place: wanted +0.000, top-1 -0.025, diversity +0.000, CPU +0 % |",
        "| 15 | G | one: wanted +0.100, top-1 -0.025, diversity +0.000, CPU -50 %; twice: wanted +0.000, "
        "top-1 -0.025, diversity +0.000, CPU +100 % |",
    ]


def test_every_measured_quirk_has_its_row_in_the_shipped_table(quirks):
    change = dict.fromkeys(("judge_wanted", "judge_top1", "diversity", "cpu_seconds"), 0.5)
    rows = [
        {"quirk": q.number, "what": q.name, "instead": q.instead, "cpu_seconds": 1.0, "change": change}
        for q in quirks.QUIRKS
    ]
    page = (ROOT / "docs/algorithm.md").read_text(encoding="utf-8")
    filled = quirks.with_effects(page, rows)
    changed = [a for a, b in zip(page.splitlines(), filled.splitlines(), strict=True) if a != b]
    assert [line.split(" | ")[0].removeprefix("| ") for line in changed] == [
        "2",
        "3",
        "4",
        "4b",
        "6",
        "8",
        "10",
        "12",
        "13",
        "15",
        "D",
    ]
