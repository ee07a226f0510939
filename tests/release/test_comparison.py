"""The text that a person decides by: a candidate beside the release in production."""

import io
from datetime import UTC, datetime

from PIL import Image
from small_release import publish_small

from srpo_core.release.comparison import compare_with_champion
from srpo_core.storage import open_store, version_key

UNTIL = datetime(2026, 12, 3, 20, 11, tzinfo=UTC)
RULE = {
    "metric": "judge",
    "compare": "difference",
    "side": "at_least",
    "margin": -0.1,
    "low": 0.1,
    "high": 0.3,
}


def rule(name, verdict, value, against="base"):
    return RULE | {"name": name, "verdict": verdict, "value": value, "against": against}


def png():
    buffer = io.BytesIO()
    Image.new("RGB", (64, 32), "red").save(buffer, format="PNG")
    return buffer.getvalue()


def test_the_rules_are_beside_those_of_the_champion_and_the_most_important_first(tmp_path):
    store = open_store(str(tmp_path / "store"))
    champion = publish_small(
        store, tmp_path, 1, rules=[rule("kept", "holds", 0.25), rule("new", "holds", None)]
    )
    rules = [
        rule("new", "holds", 0.5),
        rule("idle", "does not apply", None),
        rule("kept", "holds", -0.125),
        rule("better", "holds", 0.0625, against="champion"),
        rule("a|b", "warns", 0.75),
    ]
    version = publish_small(store, tmp_path, 2, rules=rules, more={"grid.png": png(), "report.html": b"<p>"})
    lines = compare_with_champion(store, version, champion, until=UNTIL).splitlines()
    assert lines[0] == "## tiny-2 would replace tiny-1"
    assert (
        "- decide until 2026-12-03 20:11 UTC; after that tiny-2 stays the candidate, and production as it is"
        in lines
    )
    assert [line for line in lines if line.startswith("|")] == [
        "| rule | candidate | allowed | production |",
        "|---|---:|---:|---:|",
        "| a\\|b warns | 0.75 | ≥ −0.1 | – |",
        "| better holds | 0.0625 | ≥ −0.1 | – |",
        "| new holds | 0.5 | ≥ −0.1 | – |",
        "| kept holds | −0.125 | ≥ −0.1 | 0.25 |",
    ]
    assert lines[-2:] == ["Rules that do not apply: idle.", "production: tiny-1, at its own gate."]
    (image,) = [line for line in lines if line.startswith("![")]
    assert image.startswith("![before (above) and after (below)](data:image/webp;base64,")
    (report,) = [line for line in lines if line.startswith("- report: ")]
    assert f"{version_key(version)}/report.html on " in report.replace("\\", "")


def test_without_a_champion_or_with_a_lost_one_the_text_says_so(tmp_path):
    store = open_store(str(tmp_path / "store"))
    version = publish_small(store, tmp_path, 1, rules=[rule("kept", "holds", 0.25)])
    first = compare_with_champion(store, version, None, until=UNTIL)
    assert first.startswith("## tiny-1 would replace nothing: no release is in production\n")
    assert "| rule | candidate | allowed |\n" in first
    assert "![" not in first
    assert "\n- report: –\n" in first
    lost = compare_with_champion(store, version, "tiny-0123456789ab", until=UNTIL)
    assert "- the store has lost tiny-0123456789ab: it cannot be compared" in lost


def test_a_damaged_grid_is_reported_in_the_text_and_stops_nothing(tmp_path):
    store = open_store(str(tmp_path / "store"))
    version = publish_small(store, tmp_path, 1, more={"grid.png": b"no image"})
    text = compare_with_champion(store, version, None, until=UNTIL)
    assert "No images: grid.png cannot be shown" in text
