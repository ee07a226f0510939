"""People rate in a real browser: by mouse, keyboard and touch, served and exported, alone and at once."""

import json
import math
import os
import subprocess
import sys
import tarfile
import threading
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from chromium import needs_chromium, opened_tab
from rating_tasks import draw as drawn
from rating_tasks import make_plan, make_task
from simulated_raters import KEYS, SimulatedRater

from srpo_core.rating.exporting import export_page, import_answers
from srpo_core.rating.finishing import answers_of_task, finish, to_ratings
from srpo_core.rating.power import num_checks
from srpo_core.rating.presentation import draw, ordered
from srpo_core.rating.results import summarize
from srpo_core.rating.server import Session, bind, create_app, make_server
from srpo_core.rating.task import NOISE, Choice, find_task, plan_contents, write_task
from srpo_core.rating.task_images import to_webp

HPD = Path(__file__).resolve().parents[2] / "assets/tiny/hpd"
# absolute before a test changes the working directory
SCREENSHOTS = Path(os.environ["SCREENSHOTS"]).absolute() if os.environ.get("SCREENSHOTS") else None
pytestmark = [pytest.mark.browser, needs_chromium]

SERVE = """
import sys
from srpo_core.rating.finishing import answers_of_task
from srpo_core.rating.server import Session, bind, create_app, make_server
from srpo_core.rating.task import find_task
task = find_task(sys.argv[1])
with bind("127.0.0.1", None, task.directory) as opened:
    print(f"http://127.0.0.1:{opened.getsockname()[1]}/{task.token}/", flush=True)
    make_server(create_app(Session(task, answers_of_task(task)))).run(sockets=[opened])
"""


@contextmanager
def served(task, secret=None):
    """Serve a task in a thread, and yield its address."""
    server = make_server(create_app(Session(task, answers_of_task(task)), secret))
    with bind("127.0.0.1", None, task.directory) as opened:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{opened.getsockname()[1]}/{task.token}/"
        finally:
            server.should_exit = True
            thread.join(60)


@contextmanager
def served_by_process(task):
    """Serve a task in a process of its own: (address, process)."""
    command = [sys.executable, "-c", SERVE, task.id]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process.stdout.readline().strip(), process
        finally:
            process.kill()


@contextmanager
def browsers(directory, count):
    """Open a tab in each of several browsers: an image of a tab in the background is not shown, so nobody can rate it."""
    with ExitStack() as opened:
        yield [opened.enter_context(opened_tab(directory / f"chromium{number}")) for number in range(count)]


def text_of(tab):
    return tab.run("document.body.innerText")


def require_meant(rater, ratings, task):
    """Require that each stored answer is the one that this rater meant, of the models whose pixels were in sight."""
    own = [one for one in ratings if one.rater == rater.name]
    assert len(own) == sum(len(one["answers"]) for one in rater.chosen)
    given = {}
    for one in own:
        given.setdefault(one.item, {})[one.dimension] = one
    order = [item.id for item in ordered(task.items.values(), task.planned.seed, rater.name)]
    for item, meant in zip(order, rater.chosen, strict=False):
        for dimension, answer in meant["answers"].items():
            rating = given[item][dimension]
            assert rating.prompt == meant["prompt"]
            if answer not in ("left", "right"):
                assert rating.answer == answer
                continue
            seen = meant["models"][0 if answer == "left" else 1]
            named = rating.first if rating.answer == "first" else rating.second
            assert seen in (named, "noise"), (rating, meant)
            assert rating.first_on_left == (
                meant["models"][0] == rating.first or meant["models"][1] == rating.second
            )


def test_a_rater_answers_all_pairs_by_mouse_and_each_answer_is_of_the_model_in_sight(tmp_path):
    task = make_task(prompts=8, checks=4, raters=1)
    with served(task) as address, opened_tab(tmp_path / "chromium", width=900, height=760) as tab:
        tab.call("Network.enable")
        rater = SimulatedRater(tab, "ada", seed=1)
        rater.open(address)
        rater.rate(3)
        rater.rate()
        assert "Thank you" in text_of(tab)
        urls = [
            event["params"]["request"]["url"]
            for event in tab.events
            if event["method"] == "Network.requestWillBeSent"
        ]
    assert len(urls) > 2 * len(task.items)
    assert all(url.startswith((address, "data:,")) for url in urls), "nothing is asked from another place"
    for word in ("tiny-7", "base", "noise", *task.shown_images):
        assert not [url for url in urls if word in url]
    ratings = finish(task, answers_of_task(task))
    require_meant(rater, ratings, task)
    checks = [one for one in ratings if one.kind == "check"]
    assert all(one.answer == one.expected for one in checks), "a careful rater sees the obvious"
    assert all(0 < one.seconds < 600 for one in ratings)


def test_levels_are_graded_by_keyboard_in_four_respects(tmp_path):
    task = make_task("levels", prompts=3, repeats=1, checks=2, raters=1)
    with served(task) as address, opened_tab(tmp_path / "chromium", width=900, height=900) as tab:
        rater = SimulatedRater(tab, "bob", seed=2, clicks=False)
        rater.open(address)
        tab.press("1", 49)
        tab.press("2", 50)
        tab.wait("document.querySelectorAll('[aria-pressed=true]').length === 2")
        assert tab.run("document.querySelector('fieldset.current').id") == "question-aesthetics"
        tab.press("u", 85)
        tab.press("u", 85)
        tab.wait("document.querySelectorAll('[aria-pressed=true]').length === 0")
        rater.rate()
    ratings = finish(task, answers_of_task(task))
    require_meant(rater, ratings, task)
    assert Counter(one.dimension for one in ratings) == dict.fromkeys(
        ("text_alignment", "realism", "aesthetics", "overall"), len(task.items)
    )
    assert [one.answer for one in ratings if one.expected] == ["fail", "fail"]


def test_undo_takes_answers_back_one_by_one_and_a_held_key_answers_once(tmp_path):
    task = make_task(prompts=6, repeats=0, checks=2)
    with served(task) as address, opened_tab(tmp_path / "chromium") as tab:
        rater = SimulatedRater(tab, "ada", seed=1, clicks=False)
        rater.open(f"{address}")
        first = tab.run("document.getElementById('prompt').textContent")
        rater.rate(3)
        assert answers_of_task(task).counts() == {"ada": 3}
        for left in (2, 1, 0):
            rater.press("undo")
            tab.wait(f"document.getElementById('count').textContent.startsWith('{left} of')")
        assert answers_of_task(task).counts() == {}
        assert tab.run("document.getElementById('prompt').textContent") == first
        rater.state()
        assert tab.run("document.getElementById('undo').disabled")
        for repeated in (False, True, True, True):
            tab.call(
                "Input.dispatchKeyEvent",
                type="rawKeyDown",
                key="t",
                code="KeyT",
                windowsVirtualKeyCode=84,
                autoRepeat=repeated,
            )
            rater.state()
        tab.wait("document.getElementById('count').textContent.startsWith('1 of')")
        assert answers_of_task(task).counts() == {"ada": 1}


def test_a_rater_resumes_in_another_browser_and_after_all_can_undo(tmp_path):
    task = make_task(prompts=6, repeats=0, checks=2)
    with served(task) as address:
        with opened_tab(tmp_path / "one") as tab:
            rater = SimulatedRater(tab, "ada", seed=1)
            rater.open(address)
            rater.rate(5)
            waiting = tab.run("document.getElementById('prompt').textContent")
        with opened_tab(tmp_path / "two") as tab:
            tab.open(f"{address}?rater=ada")
            rater = SimulatedRater(tab, "ada", seed=2)
            assert rater.state() == "5 of 8"
            assert tab.run("document.getElementById('prompt').textContent") == waiting
            rater.rate()
            tab.click(*tab.centre_of("#back")[:2])
            tab.wait("document.getElementById('count').textContent === '7 of 8'")
            rater.rate()
    assert answers_of_task(task).counts() == {"ada": 8}


def test_time_in_which_the_page_is_hidden_is_not_counted_and_no_time_is_longer_than_a_day(tmp_path):
    task = make_task(prompts=6, repeats=0, checks=2)
    with served(task) as address, opened_tab(tmp_path / "chromium") as tab:
        rater = SimulatedRater(tab, "ada", seed=1, clicks=False)
        rater.open(address)
        tab.run(
            "window.passed = 0; ((now) => { performance.now = () => now() + passed; })(performance.now.bind(performance));"
            "window.hide = (hidden) => { Object.defineProperty(document, 'hidden', {value: hidden, configurable: true});"
            "document.dispatchEvent(new Event('visibilitychange')); }"
        )
        tab.run("passed += 5e3; hide(true); passed += 1e9; hide(false); passed += 2e3")
        tab.press("t", 84)
        rater.state("0 of 8")
        tab.run("passed += 1e9")
        tab.press("t", 84)
        rater.state("1 of 8")
    first, second = (one.seconds for one in answers_of_task(task).all())
    assert 7 < first < 600
    assert second == 86_400


def test_the_same_rater_in_two_windows_cannot_answer_an_item_twice(tmp_path):
    task = make_task(prompts=6, repeats=0, checks=2)
    with served(task) as address, browsers(tmp_path, 2) as tabs:
        one, two = (SimulatedRater(tab, "ada", seed=seed, ties=0.0) for seed, tab in enumerate(tabs))
        for rater in (one, two):
            rater.open(address)
        one.press("left")
        one.state("0 of 8")
        two.press("right")
        two.tab.wait("!document.getElementById('error').hidden")
        assert "ada has answered it already" in text_of(two.tab)
        assert two.state("0 of 8") == "1 of 8", "the page goes on with what is stored"
        (stored,) = answers_of_task(task).all()
        assert stored.answers == {"overall": "left"}


def test_three_raters_at_once_do_not_disturb_each_other_and_the_lazy_one_is_seen(tmp_path):
    task = make_task(prompts=12, repeats=4, checks=num_checks("paired"), raters=3)
    with served(task) as address, browsers(tmp_path, 3) as tabs:
        raters = [
            SimulatedRater(tabs[0], "ada", seed=1, clicks=False),
            SimulatedRater(tabs[1], "bob", seed=2, side_bias=0.5, clicks=False),
            SimulatedRater(tabs[2], "lazy", seed=3, laziness=1.0, clicks=False),
        ]
        everyone_is_there = threading.Barrier(3)

        def rate(rater):
            rater.open(address)
            everyone_is_there.wait(120)
            rater.rate()

        with ThreadPoolExecutor(3) as threads:
            list(threads.map(rate, raters))
    ratings = finish(task, answers_of_task(task))
    assert len(ratings) == 3 * len(task.items)
    for rater in raters:
        require_meant(rater, ratings, task)
    found = summarize(ratings, models=list(task.models))
    assert {name: "obvious items right" in " ".join(one.reasons) for name, one in found.raters.items()} == {
        "ada": False,
        "bob": False,
        "lazy": True,
    }, "who clicks without looking is found and reported"
    assert 0 < found.raters["lazy"].weight < 0.6, "and counts less, but counts"
    assert found.raters["ada"].weight > 0.9
    (overall,) = [one for one in found.win_rates if one.style not in task.planned.styles]
    truth = 0.1 / 2 + 0.9 / (
        1 + math.exp(-raters[0].strength)
    )  # of who looks: ties, and the better image's log-odds
    assert (overall.model, overall.other) == ("tiny-7", "base")
    assert overall.figure.low <= truth <= overall.figure.high
    assert overall.figure.raters == 3
    shown = {rater.name: [one["prompt"] for one in rater.chosen] for rater in raters}
    assert shown["ada"] != shown["bob"] != shown["lazy"]


def test_a_killed_server_loses_no_answer_and_the_open_page_goes_on(tmp_path):
    task = make_task(prompts=8, repeats=0, checks=2)
    with opened_tab(tmp_path / "chromium") as tab:
        with served_by_process(task) as (address, process):
            rater = SimulatedRater(tab, "ada", seed=1, ties=0.0)
            rater.open(address)
            rater.rate(4)
            process.kill()
            process.wait()
            stored = answers_of_task(task).all()
            assert len(stored) == 4
            rater.press("left")
            tab.wait("!document.getElementById('error').hidden")
            assert "not saved" in text_of(tab)
            assert rater.state() == "4 of 10", "the item waits"
        with served_by_process(task) as (again, _):
            assert again == address, "the same port and the same link"
            rater.rate()
    assert answers_of_task(task).all()[:4] == stored
    assert answers_of_task(task).counts() == {"ada": 10}
    require_meant(rater, list(to_ratings(task, answers_of_task(task).all())), task)


@pytest.mark.parametrize("protocol", ["paired", "levels"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_telephone_of_400_pixels(tmp_path, protocol, scheme):
    task = make_task(protocol, prompts=6, repeats=0, checks=2)
    with served(task) as address, opened_tab(tmp_path / "chromium") as tab:
        tab.call(
            "Emulation.setDeviceMetricsOverride", width=400, height=800, deviceScaleFactor=1, mobile=True
        )
        tab.call("Emulation.setTouchEmulationEnabled", enabled=True)
        tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        rater = SimulatedRater(tab, "ada", seed=1)
        rater.open(address)
        assert tab.run("document.documentElement.scrollWidth") <= 400
        boxes = tab.run(
            "[...document.querySelectorAll('[data-answer]')].map((one) => { const b = one.getBoundingClientRect();"
            "return [b.left, b.right, b.top, b.bottom, one.scrollWidth <= one.clientWidth]; })"
        )
        for left, right, top, bottom, fits in boxes:
            assert 0 <= left < right <= 400
            assert bottom - top >= 44, "a finger needs 44 pixels"
            assert fits, "no text is cut off"
        assert protocol == "levels" or max(box[3] for box in boxes) <= 800, (
            "a pair is answered without scrolling"
        )
        before = tab.run(
            "[...document.querySelectorAll('#images img')].map((one) => one.getBoundingClientRect().width)"
        )
        assert all(width > 180 for width in before)
        x, y, _ = tab.centre_of("[data-answer]")
        for _ in range(1 if protocol == "paired" else 4):
            tab.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
            tab.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
            x, y = tab.run(
                "(() => { const b = (document.querySelector('fieldset.current button') || document.querySelector("
                "'[data-answer]')).getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()"
            )
        count = len(task.items)
        assert rater.state(f"0 of {count}") == f"1 of {count}"


def test_the_page_can_be_used_without_a_mouse_and_says_what_it_shows(tmp_path):
    task = make_task(prompts=6, repeats=0, checks=2)
    with served(task) as address, opened_tab(tmp_path / "chromium") as tab:
        rater = SimulatedRater(tab, "ada", seed=1, clicks=False)
        rater.open(address)
        prompt = tab.run("document.getElementById('prompt').textContent")
        alts = tab.run("[...document.querySelectorAll('#images img')].map((one) => one.alt)")
        assert alts == [f"The left image for “{prompt}”", f"The right image for “{prompt}”"]
        reached, widths = [], []
        for _ in range(6):
            tab.press("Tab", 9)
            reached.append(
                tab.run(
                    "((e) => e.dataset.answer || e.querySelector('img')?.id || e.id || e.tagName)(document.activeElement)"
                )
            )
            widths.append(tab.run("getComputedStyle(document.activeElement).outlineWidth"))
        assert reached == ["image-left", "image-right", "left", "right", "tie", "both_bad"]
        assert set(widths) == {"3px"}, "the focus is visible"
        tab.run("document.querySelector('#images button').focus()")
        tab.press("Enter", 13)
        tab.wait("document.getElementById('zoom').open")
        tab.press("t", 84)
        assert rater.state() == "0 of 8", "no answer while the larger image hides the buttons"
        tab.press("Escape", 27)
        tab.wait("!document.getElementById('zoom').open")
        tab.press("t", 84)
        rater.state("0 of 8")
        assert answers_of_task(task).all()[0].answers == {"overall": "tie"}


def test_a_pseudonym_that_cannot_be_taken_is_not_sent(tmp_path):
    task = make_task()
    with served(task) as address, opened_tab(tmp_path / "chromium") as tab:
        tab.open(f"{address}?rater=Ada%20Lovelace")
        tab.wait("!document.getElementById('welcome').hidden")
        tab.click(*tab.centre_of("#welcome button")[:2])
        assert tab.run("document.getElementById('rating').hidden")
        assert tab.run("document.getElementById('error').hidden"), "the browser refuses it, not the server"
        assert tab.run("document.getElementById('rater').validity.patternMismatch")


def test_the_page_draws_order_and_sides_as_the_server_does(tmp_path):
    task = make_task(prompts=20, repeats=4, checks=6)
    html = tmp_path / "task.html"
    html.write_text(export_page(task))
    with opened_tab(tmp_path / "chromium") as tab:
        tab.open(html.as_uri())
        for key in ("", "a", "0/order/ada/00ff", "7/side/A_b-9/fedcba987654"):
            assert tab.run(f"draw({json.dumps(key)})") == draw(key)
        for rater in ("ada", "bob"):
            order = tab.run(f"ordered(task.items, task.seed, '{rater}').map((one) => one.item)")
            assert order == [item.id for item in ordered(task.items.values(), 0, rater)]


def test_an_exported_page_keeps_answers_and_its_file_is_imported(tmp_path):
    """The page is opened as a file, without any server; it is closed in between."""
    task = make_task(prompts=8, repeats=2, checks=4, raters=1)
    html = tmp_path / "task.html"
    html.write_text(export_page(task))
    with opened_tab(tmp_path / "chromium") as tab:
        tab.call("Network.enable")
        tab.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
        rater = SimulatedRater(tab, "ada", seed=1, clicks=False)
        rater.open(html.as_uri())
        rater.rate(5)
        rater.press("undo")
        rater.state("5 of 14")
        rater.chosen.pop()
        tab.open("data:text/html,closed")
        rater.open(html.as_uri())
        assert rater.state() == "4 of 14"
        rater.rate()
        tab.click(*tab.centre_of("#download")[:2])
        path = tmp_path / f"answers-{task.id}-ada.json"
        until = threading.Event()
        for _ in range(600):
            if path.exists():
                break
            until.wait(0.1)
        urls = [
            event["params"]["request"]["url"][:5]
            for event in tab.events
            if event["method"] == "Network.requestWillBeSent"
        ]
    assert set(urls) <= {"file:", "data:", "about", "blob:"}
    found = import_answers(path)
    assert (found.rater, found.new, found.faults) == ("ada", len(task.items), [])
    require_meant(rater, finish(find_task(task.id), answers_of_task(task)), task)


def test_with_the_secret_in_the_link_a_rater_beyond_loopback_can_rate(tmp_path):
    task = make_task(prompts=6, repeats=0, checks=2)
    with served(task, "srpo:a-secret") as address, opened_tab(tmp_path / "chromium") as tab:
        rater = SimulatedRater(tab, "ada", seed=1)
        rater.open(address.replace("//", "//srpo:a-secret@"))
        rater.rate(2)
    assert answers_of_task(task).counts() == {"ada": 2}


def test_a_page_of_another_site_cannot_read_or_frame_the_task(tmp_path):
    task = make_task()
    with served(task) as address, opened_tab(tmp_path / "chromium") as tab:
        page = tmp_path / "other.html"
        page.write_text(
            f"<iframe src='{address}'></iframe><script>fetch('{address}rater', {{method: 'POST', body: '{{}}'}})"
            ".then((answer) => document.title = answer.status, (error) => document.title = 'refused')</script>"
        )
        tab.open(page.as_uri())
        tab.wait("document.title === 'refused'")
        with urllib.request.urlopen(address) as response:
            assert response.headers["x-frame-options"] == "DENY"


def hpd_task(protocol):
    """Make a task of drawn subjects: the first and the second image of each of eight test prompts, as two models'."""
    records = {one["prompt"]: one["image_path"] for one in json.loads((HPD / "test.json").read_text())}
    prompts = list(records)[::5]
    plan = make_plan(protocol, prompts=len(prompts), repeats=1, checks=2)
    choice = Choice(prompts, ["x"] * len(prompts), 1)
    task = write_task(plan_contents(plan, choice, {"new": "1", "base": "2"}, candidate="new", seed=0))
    (task.directory / "images").mkdir()
    with tarfile.open(HPD / "test.tar") as tar:
        files = {Path(one.name).name: one for one in tar.getmembers()}
        for name, shown_image in task.shown_images.items():
            if shown_image.model == NOISE:
                content = to_webp(drawn(task, shown_image))
            else:
                path = records[task.planned.prompts[shown_image.prompt]][shown_image.model == "base"]
                content = tar.extractfile(files[Path(path).name]).read()
            (task.directory / "images" / name).write_bytes(content)
    return task


@pytest.mark.parametrize(("protocol", "width", "height"), [("paired", 900, 700), ("levels", 400, 760)])
def test_a_task_of_real_images_is_shown_whole(tmp_path, protocol, width, height):
    """It writes the screenshots of docs/rating.md: `SCREENSHOTS=docs pytest tests/rating/test_browser.py -k real_images`."""
    task = hpd_task(protocol)
    with served(task) as address, opened_tab(tmp_path / "chromium") as tab:
        tab.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        tab.open(f"{address}?rater=ada")
        rater = SimulatedRater(tab, "ada", seed=1, clicks=False)
        rater.state()
        shown = next(
            place
            for place, item in enumerate(ordered(task.items.values(), 0, "ada"))
            if place > 1 and item.kind == "plain"
        )
        for place in range(shown):
            for _ in range(1 if protocol == "paired" else 4):
                tab.press(*KEYS["tie" if protocol == "paired" else "good"])
            assert rater.state(f"{place} of {len(task.items)}") == f"{place + 1} of {len(task.items)}"
        if protocol == "levels":
            tab.press(*KEYS["excellent"])
            tab.press(*KEYS["good"])
            tab.wait("document.querySelectorAll('[aria-pressed=true]').length === 2")
        widths = tab.run("[...document.querySelectorAll('#images img')].map((one) => one.naturalWidth)")
        assert widths == [64] * (2 if protocol == "paired" else 1)
        assert tab.run("document.documentElement.scrollHeight") <= height
        folder = SCREENSHOTS or tmp_path
        tab.screenshot().quantize(256).save(folder / f"rating_{protocol}.png", optimize=True)
