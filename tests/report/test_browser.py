"""The page in a real browser: a reader moves the slider by mouse and by keyboard."""

import io
import time
from dataclasses import replace
from pathlib import Path

import pytest
from chromium import needs_chromium, opened_tab
from PIL import Image

from srpo_core.config import ControlWords, load_settings
from srpo_core.data.changes import Changes
from srpo_core.data.kept import open_kept
from srpo_core.data.statistics import read_statistics
from srpo_core.report.data_figures import Figure
from srpo_core.report.data_page import choose_samples, data_page, diff_page
from srpo_core.report.grid import Shot, Tile
from srpo_core.report.inputs import Difference
from srpo_core.report.page import Evidence, Extremes, render_page

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.browser, needs_chromium]


def png(colour):
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page with red images before alignment and blue images after it."""
    import numpy as np

    from srpo_core.gates.pairs import Pairs

    figures = {"quality": np.array([0.5, 0.6])}
    pairs = Pairs(("cat", "dog"), ("a", "b"), np.array([0, 1]), np.array([0, 0]), figures, figures, None)
    tile = Tile("cat", (Shot(0, png("red"), png("blue")),))
    rule = {
        "name": "kept",
        "metric": "quality",
        "against": "base",
        "compare": "difference",
        "side": "at_least",
    }
    rule |= {
        "margin": -0.1,
        "tie": 0.0,
        "severity": "refuse",
        "meaning": "it is kept",
        "value": 0.0,
        "low": -0.02,
        "high": 0.02,
    }
    rule |= {"confidence": 0.95, "passed": True, "verdict": "holds", "reason": "it is kept"}
    decision = {
        "passed": True,
        "verdict": "passed",
        "reason": "it holds.",
        "rules": [rule],
        "confidence": 0.95,
    }
    decision |= {"objective": {"metric": "quality", "rose": False, "low": 0.0, "high": 0.0}}
    decision |= {"chance_of_refusing_an_equal": None}
    selection = {
        "step": 1,
        "checkpoint": "x",
        "maximize": "quality",
        "curve": [{"step": 0, "quality": 0.5}, {"step": 1, "quality": 0.6}],
        "rounds": [],
    }
    evidence = Evidence(
        control_words=ControlWords.of(wanted=["Ink"], unwanted=["3D"]),
        decision=decision,
        selection=selection | {"admissible": [1], "reason": "it is best"},
        agreement={"agreement": 0.9, "pairs": 10, "low": 0.6, "high": 1.0},
        summary={"champion": None},
        training={},
        outcome={
            "steps": 1,
            "planned_steps": 1,
            "stopped_early": None,
            "alarm": None,
            "control_words_in_prompts": {"prompts": 10, "wanted": {"Ink": 0}, "unwanted": {"3D": 3}},
        },
        pairs=pairs,
        tiles=[tile, tile],
        extremes=Extremes("quality", "more", [(tile, 0.1)], [(tile, -0.1)]),
        data={"prompts.parquet": "0123"},
        records={"read": {"train.json": 3}, "bad": 0, "rules": {}},
        preset="tiny",
        differences=[Difference("seed", "0", "1")],
        metric_notes={},
    )
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render_page(evidence), encoding="utf-8")
    return path


@pytest.fixture(params=[400, 1400])
def tab(request, page, tmp_path):
    with opened_tab(tmp_path, page.as_uri(), width=request.param) as opened:
        opened.wait("document.readyState === 'complete' && location.protocol === 'file:'")
        yield opened


RED, BLUE = (255, 0, 0), (0, 0, 255)
FIRST = ".tiles .shot"


def split(tab):
    return tab.run("document.querySelector('#split').value"), tab.run(
        "document.querySelector('#gallery').style.getPropertyValue('--split')"
    )


def test_the_slider_moves_by_keyboard_and_by_dragging_and_the_images_follow(tab):
    assert tab.pixel_colours(FIRST) == [RED, BLUE], "side by side at first"
    assert tab.run("getComputedStyle(document.querySelector('.slide')).display") == "none"
    x, y, _ = tab.centre_of("label[for=view-slider]")
    tab.click(x, y)
    assert split(tab) == ("50", "50%")
    assert tab.pixel_colours(FIRST) == [RED, BLUE], "before to the left of the line, after to its right"

    tab.run("document.querySelector('#split').focus()")
    tab.press("End", 35)
    assert split(tab) == ("100", "100%")
    assert tab.pixel_colours(FIRST) == [RED, RED]
    tab.press("Home", 36)
    assert tab.pixel_colours(FIRST) == [BLUE, BLUE]
    for _ in range(5):
        tab.press("ArrowRight", 39)
    assert split(tab) == ("5", "5%")
    assert tab.run("document.querySelector('#split').getAttribute('aria-valuetext')") == "5 percent before"

    x, y, width = tab.centre_of(FIRST)
    tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=x + 0.4 * width, y=y)
    assert int(split(tab)[0]) == pytest.approx(90, abs=2)
    assert tab.pixel_colours(FIRST) == [RED, RED]


def test_the_views_are_reachable_with_tab_and_arrow_keys_only(tab):
    tab.press("Tab", 9)
    assert tab.run("document.activeElement.id") == "view-side"
    tab.press("ArrowRight", 39)
    assert tab.run("document.querySelector('#view-slider').checked") is True
    seen = []
    for _ in range(3):
        tab.press("Tab", 9)
        seen.append(tab.run("document.activeElement.id"))
    assert "split" in seen


def test_nothing_is_fetched_and_only_our_own_script_can_run(tab, page):
    tab.call("Network.enable")
    entries = tab.run("performance.getEntriesByType('resource').map(entry => entry.name.slice(0, 5))")
    assert set(entries) <= {"data:"}
    tab.run("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hacked=1\">')")
    tab.run(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.hacked=1'}))"
    )
    assert tab.run("window.hacked") is None
    assert Path(page).stat().st_size > 10_000


def test_the_pages_of_the_data_fit_narrow_and_wide_windows(tab, tmp_path):
    ingest = load_settings(ROOT / "params.yaml").ingest
    source = open_kept(ingest.model_copy(update={"source": str(ROOT / "assets/tiny/hpd")}))
    word = "x" * 300
    findings = {"trained_benchmark_prompt": {"severity": "critical", "found": 1234567, "set_aside": 1234567}}
    samples = [replace(one, prompt=word) for one in choose_samples(source, 4)]
    words = ControlWords.of(["Ink"], [word[:60]])
    changes = {"train": Changes(added=1234567, examples={"added": [word]})}
    tag = "data/a-long-name-of-a-data-set/0123456789ab"
    for name, text in (
        ("show", data_page(tag, read_statistics(source), words, findings, samples)),
        ("diff", diff_page(tag, tag, changes, [(None, Figure("styles", word, 1))])),
    ):
        page = tmp_path / f"{name}.html"
        page.write_text(text, encoding="utf-8")
        tab.call("Page.navigate", url=page.as_uri())
        until = time.monotonic() + 60
        while not tab.run(f"document.readyState === 'complete' && location.pathname.endsWith('{name}.html')"):
            assert time.monotonic() < until, "the page did not load"
            time.sleep(0.1)
        assert tab.run("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0, (
            name
        )
        assert tab.run("[...document.images].every(one => one.complete && one.naturalWidth > 0)") is True


def navigate(tab, page):
    """Open a page, and wait until it is loaded."""
    tab.call("Page.navigate", url=page.as_uri())
    until = time.monotonic() + 60
    while not tab.run(f"document.readyState === 'complete' && location.pathname.endsWith('{page.name}')"):
        assert time.monotonic() < until, "the page did not load"
        time.sleep(0.1)


def test_the_page_of_a_store_fits_with_no_version_one_and_500(tab, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import store_page

    overflow = (
        "document.documentElement.scrollWidth - innerWidth"  # of the page, and of what it would have to scroll
        " + [...document.querySelectorAll('body *')].filter(one => !one.closest('svg')"
        " && one.getBoundingClientRect().right > innerWidth + 1).length"
    )
    # a window is at least 500 pixels wide, what is shown in it need not be
    asked = 400 if tab.run("innerWidth") < 1000 else 1400
    metrics = {"width": asked, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    tab.call("Emulation.setDeviceMetricsOverride", **metrics)
    for versions in (0, 1, 500):
        # the pages are made once for both windows
        page = stores_of(store_page, tmp_path.parent / "stores", versions)
        navigate(tab, page)
        tab.run("document.querySelectorAll('details').forEach(one => { one.open = true; })")
        assert tab.run("innerWidth") == asked
        assert tab.run(overflow) <= 0, versions
        loaded = "[...document.images].every(one => { one.loading = 'eager'; return one.src.startsWith('data:'); })"
        assert tab.run(loaded) is True
        assert tab.run("document.querySelectorAll('script').length") == 0
        rows = tab.run("document.querySelectorAll('.versions tbody tr').length")
        assert rows == versions
        assert tab.run(
            "[...document.querySelectorAll('a[href^=\"#\"]')].every(one => document.getElementById(one.getAttribute('href').slice(1)))"
        )
        visible = tab.run(
            "[...document.querySelectorAll('.lineage')].filter(one => one.getBoundingClientRect().width).length"
        )
        assert visible == (1 if versions else 0), "of the wide and the narrow diagram one is shown"


def stores_of(benchmark, root, versions):
    """Return the page of a store with so many versions, which is made if it is not there yet."""
    directory = root / f"of-{versions}"
    page = directory / "page.html"
    if not page.exists():
        from srpo_core.release.store_page import write_page

        write_page(benchmark.fill_directory(directory, versions), page)
    return page
