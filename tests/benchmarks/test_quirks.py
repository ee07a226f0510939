"""Every quirk that is measured must change what it names, and stand in the table of docs/algorithm.md."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from srpo_core.config import load_settings

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def quirks():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import quirks

        yield quirks
        for name in ("quirks", "trial"):
            sys.modules.pop(name, None)


def test_every_quirk_changes_the_settings_or_the_worker(quirks):
    settings = load_settings(ROOT / "profiles/tiny.yaml")
    plain = quirks.with_quirk(settings, quirks.QUIRKS[0], 3)
    assert plain.train.steps == plain.train.checkpoint_every == 3
    for quirk in quirks.QUIRKS[1:]:
        changed = quirks.with_quirk(settings, quirk, 3)
        assert (changed != plain) != (quirk.change is not quirks.nothing), quirk.name


def test_every_measured_quirk_stands_in_the_table_of_the_docs(quirks):
    text = (ROOT / "docs/algorithm.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| (\w+) \|", text, re.MULTILINE))
    measured = {
        number.rstrip("ab") if number != "4b" else number
        for q in quirks.QUIRKS
        for number in q.number.split(", ")
    }
    assert measured - {"none"} <= listed


def test_time_in_bfloat16_is_a_multiple_of_four_thousandths_above_512(quirks):
    seen = []
    model = SimpleNamespace(velocity=lambda latents, timestep, guidance, condition: seen.append(timestep))
    quirks.coarse_time(SimpleNamespace(model=model))
    model.velocity(None, torch.tensor([0.835, 0.878, 0.5]), 1.0, None)
    assert (seen[0] * 1000).round().tolist() == [836, 880, 500]
