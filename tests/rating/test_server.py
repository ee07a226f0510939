"""The server as a program sees it: who may ask, what it refuses, and what its responses say about models."""

import base64
import io
import re
from collections import defaultdict

import pytest
from PIL import Image
from rating_tasks import QUALITY, make_task
from starlette.testclient import TestClient

from srpo_core.errors import ConfigError
from srpo_core.rating.finishing import answers_of_task, to_ratings
from srpo_core.rating.page import page_version
from srpo_core.rating.presentation import a_is_left
from srpo_core.rating.server import Session, bind, create_app, is_loopback

MODELS = ("tiny-7", "base")


@pytest.fixture
def task():
    return make_task()


@pytest.fixture
def client(task):
    return client_of(task)


def client_of(task, secret=None):
    app = create_app(Session(task, answers_of_task(task)), secret)
    return TestClient(app, base_url=f"http://127.0.0.1/{task.token}/")


def answer(item, *, rater="ada", answers=None, **changes):
    return {
        "rater": rater,
        "item": item,
        "answers": answers or {"overall": "left"},
        "seconds": 1.0,
        "page": page_version(),
        **changes,
    }


def grey_of(content):
    """Return the grey of the upper half, by which an image's model is known to this test."""
    return Image.open(io.BytesIO(content)).convert("RGB").getpixel((5, 5))[0]


def model_of(content):
    return min(QUALITY, key=lambda name: abs(QUALITY[name] - grey_of(content)))


@pytest.mark.parametrize("path", ["", "rater", "image/ada/x/left", "answer", "undo"])
def test_without_the_token_nothing_is_found(task, client, path):
    wrong = task.token[:-1] + ("0" if task.token[-1] != "0" else "1")
    for address in (
        f"http://127.0.0.1/{path}",
        f"http://127.0.0.1/{wrong}/{path}",
        f"http://127.0.0.1/{task.token}x/{path}",
    ):
        response = client.get(address)
        assert (response.status_code, response.content) == (404, b"")
        assert client.post(address, json={"rater": "ada"}).status_code == 404


def test_beyond_loopback_every_request_needs_the_secret(task):
    client = client_of(task, "srpo:secret")
    for path in ("", "rater", "image/ada/x/left"):
        assert client.get(path).status_code == 401
        assert client.get(path, auth=("srpo", "wrong")).status_code == 401
    assert client.get("", headers={"authorization": "Bearer srpo:secret"}).status_code == 401
    assert client.get("", auth=("srpo", "secret")).status_code == 200
    encoded = base64.b64encode(b"srpo:secret").decode()
    assert client.get("", headers={"authorization": f"Basic {encoded}"}).status_code == 200
    assert client.get("", headers={"authorization": "Basic ü".encode()}).status_code == 401


def test_the_page_asks_no_other_place_for_anything(client):
    response = client.get("")
    assert response.status_code == 200
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", response.text)
    assert "://" not in response.text
    policy = response.headers["content-security-policy"]
    assert policy in response.text, "the exported page has no headers"
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "*" not in policy
    assert response.headers["referrer-policy"] == "no-referrer", "the address has the token"


def test_a_rater_gets_all_items_and_goes_on_after_the_last_answer(task, client):
    state = client.post("rater", json={"rater": "ada"}).json()
    assert {one["item"] for one in state["items"]} == set(task.items)
    assert state["answered"] == []
    first, second = (one["item"] for one in state["items"][:2])
    for item in (first, second):
        assert client.post("answer", json=answer(item)).status_code == 200
    again = client_of(task).post("rater", json={"rater": "ada"}).json()
    assert again == {"items": state["items"], "answered": [first, second]}
    assert client.post("undo", json={"rater": "ada", "item": second}).status_code == 200
    assert client.post("rater", json={"rater": "ada"}).json()["answered"] == [first]
    assert client.post("rater", json={"rater": "bob"}).json()["answered"] == []


def test_left_is_the_model_that_the_rater_saw_on_the_left(task, client):
    for number in range(4):
        rater = f"rater{number}"
        for item in task.items.values():
            if item.kind == "check":
                continue
            left, right = (
                model_of(client.get(f"image/{rater}/{item.id}/{side}").content) for side in ("left", "right")
            )
            assert {left, right} == set(MODELS)
            client.post("answer", json=answer(item.id, rater=rater))
            *_, rating = to_ratings(task, answers_of_task(task).all())
            assert {"first": rating.first, "second": rating.second}[rating.answer] == left
            assert rating.first_on_left == (left == rating.first)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"answers": {"overall": "first"}}, "allowed are left, right, tie, both_bad"),
        ({"answers": {}}, "answers are needed for overall"),
        ({"answers": {"overall": "left", "realism": "good"}}, "answers are needed for overall"),
        ({"item": "nothing"}, "item 'nothing' is not in this task"),
        ({"page": "0" * 12}, "another version: reload"),
        ({"seconds": -1}, "greater than or equal to 0.1"),
        ({"seconds": 0.05}, "greater than or equal to 0.1"),
        ({"seconds": float("inf")}, "finite"),
        ({"seconds": "1"}, "valid number"),
        ({"rater": "Ada Lovelace"}, "pattern"),
        ({"rater": "../x"}, "pattern"),
        ({"rater": ""}, "pattern"),
        ({"rater": "a" * 33}, "pattern"),
        ({"model": "base"}, "Extra inputs"),
    ],
)
def test_an_answer_that_breaks_a_rule_is_refused_and_not_stored(task, client, changes, text):
    import json

    body = {**answer(next(iter(task.items))), **changes}
    body["answers"] = changes.get("answers", body["answers"])
    response = client.post("answer", content=json.dumps(body), headers={"content-type": "application/json"})
    assert response.status_code in (409, 422), response.text
    assert text in response.text
    assert answers_of_task(task).all() == []


def test_an_answer_after_a_night_and_a_day_is_taken_as_one_after_a_day(task, client):
    assert client.post("answer", json=answer(next(iter(task.items)), seconds=200_000.0)).status_code == 200
    assert [one.seconds for one in answers_of_task(task).all()] == [86_400.0]


def test_a_second_answer_to_an_item_is_refused_and_the_first_stays(task, client):
    item = next(iter(task.items))
    assert client.post("answer", json=answer(item)).status_code == 200
    assert client.post("answer", json=answer(item)).status_code == 200, "sent again, the same one"
    response = client.post("answer", json=answer(item, answers={"overall": "right"}))
    assert response.status_code == 409
    assert "answered it already" in response.json()["detail"]
    assert [one.answers for one in answers_of_task(task).all()] == [{"overall": "left"}]


def test_a_finished_task_says_so(task, client):
    answers_of_task(task).close("")
    response = client.post("answer", json=answer(next(iter(task.items))))
    assert (response.status_code, response.json()["detail"]) == (
        409,
        "this task is finished and takes no more answers",
    )


def test_a_request_that_is_large_or_of_unknown_size_is_not_read(client):
    assert client.post("answer", content=b"x" * 20_000).status_code == 413
    assert client.post("answer", content=iter([b"x"] * 3)).status_code == 411


def test_a_fault_of_the_server_is_told_to_the_rater_without_paths_and_logged_in_one_line(
    task, client, caplog
):
    (task.directory / "answers.sqlite").write_bytes(b"not a database" * 100)
    response = client.post("answer", json=answer(next(iter(task.items))))
    assert response.status_code == 500
    assert response.json()["detail"].startswith("The server has a fault, and your last answer is not saved")
    assert str(task.directory) not in response.text
    (record,) = [one for one in caplog.records if one.name == "srpo_core.rating.server"]
    assert "answers.sqlite cannot be read or written" in record.getMessage()


@pytest.mark.parametrize("side", ["middle", "LEFT", "a", "first", "base"])
def test_an_image_has_no_other_name_than_item_and_side(task, client, side):
    item = next(iter(task.items))
    assert client.get(f"image/ada/{item}/{side}").status_code == 404
    assert client.get(f"image/ada/{item}x/left").status_code == 404
    for name in task.shown_images:
        assert client.get(f"image/{name}").status_code == 404


def test_with_levels_there_is_one_image_and_four_answers():
    task = make_task("levels")
    client = client_of(task)
    item = next(iter(task.items))
    assert client.get(f"image/ada/{item}/left").status_code == 200
    assert client.get(f"image/ada/{item}/right").status_code == 404
    given = {"text_alignment": "excellent", "realism": "good", "aesthetics": "pass", "overall": "fail"}
    assert client.post("answer", json=answer(item, answers=given)).status_code == 200
    ratings = list(to_ratings(task, answers_of_task(task).all()))
    assert {one.dimension: one.answer for one in ratings} == given
    assert {one.second for one in ratings} == {""}


def sent(client, task, rater):
    """All that a rater's browser receives, by address: header names and values, and content."""
    page, state = client.get(""), client.post("rater", json={"rater": rater})
    received = {"": page, "rater": state}
    for one in state.json()["items"]:
        for side in ("left", "right"):
            path = f"image/{rater}/{one['item']}/{side}"
            received[path] = client.get(path)
    return received


def test_the_page_is_the_same_for_every_task_of_a_protocol(task, client):
    other = make_task(models=("tiny-8", "tiny-7"), prompts=9, seed=5)
    assert client.get("").text == client_of(other).get("").text


def test_nothing_that_a_browser_receives_names_a_model_a_kind_or_a_file(task, client):
    kinds = ["noise", "check", "repeat", "first", "second", "expected", "phase"]
    words = [*MODELS, *kinds, *task.shown_images, str(task.directory), task.id]
    for path, response in sent(client, task, "ada").items():
        shown = f"{path} {response.headers}" + ("" if path.startswith("image") else response.text)
        for word in words:
            assert path == "" or word not in shown, (path, word)


def test_headers_of_images_are_the_same_whichever_model_made_them(task, client):
    """Only Content-Length differs, and that is the pixels' own: there is no time, tag or name of a file."""
    names = set()
    for path, response in sent(client, task, "ada").items():
        if path.startswith("image"):
            names.add(
                tuple(
                    sorted(
                        (name, value) for name, value in response.headers.items() if name != "content-length"
                    )
                )
            )
    (headers,) = names
    assert {name for name, _ in headers} == {
        "cache-control",
        "content-type",
        "cross-origin-resource-policy",
        "referrer-policy",
        "x-content-type-options",
        "x-frame-options",
    }


def test_images_have_one_size_one_encoder_and_no_metadata(task, client):
    chunks, sizes = set(), set()
    for path, response in sent(client, task, "ada").items():
        if path.startswith("image"):
            image = Image.open(io.BytesIO(response.content))
            sizes.add((image.format, image.size, image.mode))
            assert not set(image.info) - {"loop", "background", "timestamp", "duration"}, image.info
            chunks.add(response.content[12:16])
    assert sizes == {("WEBP", (64, 64), "RGB")}
    assert chunks == {b"VP8L"}, "a plain lossless image: no container with EXIF, XMP or a profile"


def test_item_number_and_side_do_not_predict_the_model():
    """A rater who knows every address cannot do better than chance at guessing which image is whose."""
    task = make_task(prompts=40, repeats=0, checks=0)
    client = client_of(task)
    by_guess = defaultdict(int)
    for path, response in sent(client, task, "ada").items():
        if not path.startswith("image"):
            continue
        _, _, item, side = path.split("/")
        is_candidate = model_of(response.content) == "tiny-7"
        by_guess["left"] += is_candidate == (side == "left")
        by_guess["even item"] += is_candidate == ((int(item, 16) % 2 == 0) == (side == "left"))
        by_guess["published hash"] += is_candidate == (a_is_left(0, "ada", item) == (side == "left"))
    for guess, right in by_guess.items():
        assert 24 <= right <= 56, (guess, right)


def test_only_loopback_is_private_and_a_name_is_no_address():
    assert [is_loopback(host) for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost", "0.0.0.0", "192.168.1.2", "::")] == [
        True, True, True, True, False, False, False,
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=r"--host example\.org: give an IP address"):
        is_loopback("example.org")


def test_a_server_takes_the_port_of_the_last_time_again_and_another_one_if_it_is_taken(task):
    with bind("127.0.0.1", None, task.directory) as first:
        port = first.getsockname()[1]
        with bind("127.0.0.1", None, task.directory) as second:
            assert second.getsockname()[1] != port
    (task.directory / "port").write_text(str(port))
    with bind("127.0.0.1", None, task.directory) as third:
        assert third.getsockname()[1] == port
        with pytest.raises(ConfigError, match=f"127.0.0.1 port {port} cannot be used"):
            bind("127.0.0.1", port, task.directory)


def test_a_missing_image_is_a_fault_of_the_server_and_no_other_image(task, client):
    lost = next(iter(task.items.values()))
    for name in lost.files:
        (task.directory / "images" / name).unlink()
    response = client.get(f"image/ada/{lost.id}/left")
    assert response.status_code == 500
    assert response.headers["content-type"] == "application/json"
