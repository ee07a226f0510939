"""The page of a store, index.html: what it shows, and that it is complete whoever writes it."""

import io
import os
import re
import threading
from functools import partial
from html.parser import HTMLParser

import pytest
from faulty_proxy import FaultyProxy, without
from PIL import Image
from small_release import publish_small
from stored_files import Files

from srpo_core.errors import ConfigError, StoreError
from srpo_core.release import store_page as page_module
from srpo_core.release.aliases import move_alias, promote, rollback
from srpo_core.release.gc import collect_garbage
from srpo_core.release.store_page import rebuild_page, store_page, write_page
from srpo_core.report.store_page import DETAILED
from srpo_core.storage import content_digest, open_store
from srpo_core.storage.manifest import alias_key


class Elements(HTMLParser):
    """The elements of a page, with their attributes, and its text."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.texts = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def files_linked(page):
    """Return the links of a page to files of the store, in order."""
    found = [one["href"] for tag, one in Elements(page).elements if tag == "a"]
    return [href for href in found if not href.startswith("#")]


def page_of(store):
    return Files(store)["index.html"].decode()


def png(width=64, height=48, colour="red"):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, format="PNG")
    return buffer.getvalue()


def publish_whole(store, tmp_path, version, /, **parts):
    """Publish a version with a grid and the parts of the manifest that are given."""
    import hashlib

    files = {"grid.png": png(), "params.yaml": b"seed: 0\n"} | parts.pop("files", {})
    source = tmp_path / f"whole-{version}"
    source.mkdir()
    entries = {}
    for name, data in files.items():
        (source / name).write_bytes(data)
        entries[name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    manifest = {
        "version": version,
        "created_at": "2026-02-01T10:00:00+00:00",
        "files": entries,
        "content": content_digest(entries, entries),
        "formats": {"bf16": ["params.yaml"]},
        "decision": {"passed": True, "reason": "every rule holds.", "rules": []},
    }
    store.publish(version, {name: source / name for name in files}, manifest | parts)


STAGE = {
    "stage": "train",
    "wall_hours": 0.5,
    "device_hours": 4,
    "devices": 8,
    "kind": "GPU",
    "attempts": 1,
    "money": {"EUR": 12.5},
    "priced": True,
    "cached": False,
}
RULE = {
    "name": "style_gained",
    "metric": "judge_wanted",
    "against": "base",
    "compare": "difference",
    "side": "at_least",
    "margin": 0.05,
    "verdict": "holds",
    "value": 0.31,
    "low": 0.25,
    "high": 0.36,
}


def test_every_move_and_removal_writes_the_page_anew(store, publish):
    for number in (1, 2, 3):
        publish(number)
    promote(store, "tiny-1", who="mara", reason="the first one")
    assert "the first one" in page_of(store)
    promote(store, "tiny-2", who="jon", reason="sharper")
    text = Elements(page_of(store)).text
    assert "In production tiny-2 , since" in text
    assert "by jon: sharper" in text
    rollback(store, who="mara", reason="too sharp")
    text = Elements(page_of(store)).text
    assert "by mara: too sharp" in text
    assert "tiny-2 tiny-1 mara rolled back too sharp" in text
    assert "tiny-3" in text
    collect_garbage(store, keep=0)
    assert "tiny-3" in page_of(store), "nothing was removed"
    collect_garbage(store, keep=0, delete=True)
    assert "tiny-3" not in page_of(store)


def test_the_page_has_figures_origin_formats_and_cost_of_each_release(tmp_path):
    store = open_store(str(tmp_path / "store"))
    publish_whole(store, tmp_path, "tiny-0a")
    publish_whole(
        store,
        tmp_path,
        "tiny-1a",
        created_at="2026-02-02T10:00:00+00:00",
        decision={"passed": True, "reason": "every rule holds.", "rules": [RULE]},
        git={"revision": "abcdef0123456789", "diff": "+ x"},
        evaluation={"champion": "tiny-0a"},
        lineage={
            "data": {"name": "data/hpd", "md5": "0123456789abcdef.dir"},
            "base": {"name": "flux", "md5": None},
            "rewards": [
                {"name": "hps", "md5": None, "weight": 2},
                {"name": "clip", "md5": None, "weight": 1},
            ],
        },
        proof={
            "formats": {"bf16": {"gain_kept": 0.934, "psnr": None}},
            "refused": {"q4_0": {"refused": ["12 dB to bf16"]}},
        },
        cost={"stages": [STAGE]},
    )
    page = Elements(store_page(store))
    assert "newest: 0.310 (0.250 … 0.360), allowed ≥ 0.05" in page.text
    assert "Code abcdef012345 + changes Data data/hpd 0123456789ab Settings" in page.text
    assert "Base flux Reward hps × 2, clip × 1 Champion tiny-0a Cost 4 GPU hours · 12.50 EUR " in page.text
    assert "bf16 93%" in page.text
    assert "q4_0 left out" in page.text
    assert "beat tiny-0a" in page.text
    titles = [attributes.get("title") for _, attributes in page.elements]
    assert "12 dB to bf16" in titles
    circles = [one for tag, one in page.elements if tag == "circle" and one["class"] == "value good"]
    assert len(circles) == 1
    images = [one["src"] for tag, one in page.elements if tag == "img"]
    assert len(images) == 2
    assert all(source.startswith("data:image/webp;base64,") for source in images)


def test_the_links_lead_to_the_files_and_are_relative(store, tmp_path):
    publish_whole(store, tmp_path, "tiny-1a", files={"report.html": b"a report"})
    page = Elements(store_page(store))
    links = dict.fromkeys(files_linked(store_page(store)))
    assert [Files(store)[link] for link in links] == [png(), b"a report"]
    assert not any("//" in link for link in links)
    names = {one["download"] for tag, one in page.elements if tag == "a" and "download" in one}
    in_bucket = {"tiny-1a-grid.png", "tiny-1a-report.html"}  # where the name of a file is its digest
    assert names == (in_bucket if "://" in store.uri else set())


MARKUP = "<script>alert(1)</script><img src=x onerror=alert(1)>\"' onmouseover='alert(1)"


def test_no_text_of_a_manifest_or_an_alias_becomes_markup(tmp_path):
    """Every text that the page shows is markup here; names of versions and files are checked by the store."""
    store = open_store(str(tmp_path / "store"))
    texts = dict.fromkeys(("name", "metric", "against", "compare", "side", "verdict"), MARKUP)
    publish_whole(
        store,
        tmp_path,
        "tiny-1a",
        created_at=MARKUP,
        formats={MARKUP: ["params.yaml"]},
        decision={"passed": True, "reason": MARKUP, "rules": [RULE | texts]},
        git={"revision": MARKUP, "diff": MARKUP},
        evaluation={"champion": MARKUP},
        lineage={part: {"name": MARKUP, "md5": MARKUP} for part in ("data", "base")}
        | {"rewards": [{"name": MARKUP, "md5": MARKUP}]},
        proof={"formats": {}, "refused": {MARKUP: {"refused": [MARKUP]}}},
        cost={"stages": [STAGE | {"stage": MARKUP, "kind": MARKUP, "money": {MARKUP: 1}}]},
    )
    publish_whole(store, tmp_path, "tiny-2a", decision={"passed": MARKUP})
    step = {"when": MARKUP, "who": MARKUP, "why": MARKUP, "from": MARKUP, "to": "tiny-1a", "rollback": True}
    store.write_alias("tiny/production", {"version": MARKUP, "history": [step]}, None)
    store.write_alias("tiny/other", {"version": 1, "history": MARKUP}, None)
    page = store_page(store)
    found = Elements(page)
    assert found.text.count("<script>alert(1)</script>") > 15
    tags = {tag for tag, _ in found.elements}
    assert "script" not in tags
    attributes = {name for _, one in found.elements for name in one}
    assert not {name for name in attributes if name.startswith("on")}
    sources = [one["src"] for tag, one in found.elements if tag == "img"]
    assert all(source.startswith("data:") for source in sources)
    assert all(re.match(r"#|models/|objects/", one["href"]) for tag, one in found.elements if tag == "a")
    assert "default-src 'none'" in page


STRANGE = [
    {"decision": {"passed": "yes"}},
    {"decision": {"passed": True, "rules": [RULE | {"value": float("nan")}]}},
    {"decision": {"passed": True, "rules": [RULE | {"low": 1e300}]}},
    {"decision": {"passed": True, "rules": ["x"]}},
    {"decision": {"passed": True, "rules": [{}] * 501}},
    {"decision": {}},
    {"proof": {"formats": []}},
    {"created_at": ""},
    {"lineage": "x"},
    {"cost": {"stages": [{"stage": "train", "device_hours": -1}]}},
    {"version": "tiny-99"},
    {"formats": {}},
    {"git": {"revision": 1}},
    {
        "decision": {
            "passed": True,
            "reason": "x" * 100_000,
            "rules": [RULE | {"compare": "none such", "side": "within"}],
        }
    },
    {
        "decision": {
            "passed": False,
            "rules": [RULE | {"value": 1e-300, "low": 0.0, "high": 1e-299, "margin": -1e12}],
        }
    },
    {"decision": {"passed": True, "rules": [RULE | dict.fromkeys(("value", "low", "high", "margin"))]}},
]


def test_strange_manifests_are_rows_and_hide_no_other(tmp_path):
    store = open_store(str(tmp_path / "store"))
    for number, parts in enumerate(STRANGE):
        publish_whole(store, tmp_path, f"tiny-{number:x}b", **parts)
    publish_small(store, tmp_path, 1)
    page = Elements(store_page(store))
    assert page.text.count("its manifest is not one of srpo (") == 9
    assert "decision.rules.0.value: Input should be a finite number" in page.text
    assert (
        "its manifest is of version &#39;tiny-99&#39;" in page.text or "is of version 'tiny-99'" in page.text
    )
    ids = [one["id"] for _, one in page.elements if one.get("id", "").startswith("tiny-")]
    assert sorted(ids) == sorted({*ids}) == store.versions()
    assert len(store_page(store)) < 150_000


def test_a_damaged_manifest_alias_or_image_is_shown_as_such_without_the_place_of_the_store(
    store, publish, tmp_path
):
    for number in (1, 2):
        publish(number)
    publish_whole(store, tmp_path, "tiny-3a")
    publish_whole(store, tmp_path, "tiny-4a", files={"grid.png": b"GIF89a"})
    move_alias(store, "tiny/candidate", "tiny-2", why="published")
    promote(store, "tiny-1")
    files = Files(store)
    (manifest,) = (name for name in files if name.endswith("tiny-2/manifest.json"))
    files[manifest] = files[manifest][:-40]
    alias = alias_key("tiny/production")
    files[alias] = files[alias][:-30]
    grid = store.key_of("tiny-3a", "grid.png", store.manifest("tiny-3a")["files"]["grid.png"]["sha256"])
    files[grid] = files[grid][:-1] + b"\0"
    page = Elements(store_page(store))
    assert "1 version has a manifest that cannot be used" in page.text
    assert re.search(r"tiny-2 candidate models/tiny/versions/tiny-2/manifest.json is damaged", page.text)
    assert (
        "The alias tiny/production cannot be read: models/tiny/aliases/production.json is damaged"
        in page.text
    )
    assert "grid.png does not have its SHA-256: run srpo verify" in page.text
    assert "grid.png cannot be shown: cannot identify image file" in page.text
    assert str(tmp_path) not in " ".join(page.texts)


def test_a_huge_image_is_not_decoded(tmp_path, monkeypatch):
    store = open_store(str(tmp_path / "store"))
    publish_whole(store, tmp_path, "tiny-1a", files={"grid.png": png(300, 300)})
    monkeypatch.setattr(page_module, "LARGEST_IMAGE", 80_000)
    assert "grid.png cannot be shown: it has 300×300 pixels" in store_page(store)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40_000)  # Pillow refuses twice as many
    assert "grid.png cannot be shown: Image size (90000 pixels) exceeds limit" in store_page(store)


def test_of_many_versions_the_newest_and_the_one_in_production_have_images(tmp_path):
    store = open_store(str(tmp_path / "store"))
    for number in range(DETAILED + 3):
        publish_whole(store, tmp_path, f"tiny-{number:02}", created_at=f"2026-01-{number + 1:02}")
    promote_step = {"when": "2026-02", "who": "a", "why": "b", "from": None, "to": "tiny-01"}
    store.write_alias("tiny/production", {"version": "tiny-01", "history": [promote_step]}, None)
    page = Elements(store_page(store))
    articles = [one["id"] for tag, one in page.elements if tag == "article"]
    assert articles == [*(f"tiny-{number:02}" for number in range(DETAILED + 2, 2, -1)), "tiny-01"]
    assert sum(tag == "img" for tag, _ in page.elements) == DETAILED + 1
    assert f"The newest {DETAILED} releases and the one in production" in page.text
    grid = store.manifest("tiny-00")["files"]["grid.png"]["sha256"]
    assert store.key_of("tiny-00", "grid.png", grid) in files_linked(store_page(store))


def test_a_page_that_cannot_be_written_is_one_warning_and_the_move_is_done(tmp_path, monkeypatch, caplog):
    store = open_store(str(tmp_path / "store"))
    publish = partial(publish_small, store, tmp_path)
    publish(1)

    def fail(*_):
        raise StoreError("the store is full")

    monkeypatch.setattr(type(store), "write_page", fail)
    assert promote(store, "tiny-1").after == "tiny-1"
    (record,) = [one for one in caplog.records if one.levelname == "WARNING"]
    assert "index.html of" in record.message
    assert "was not written (StoreError: the store is full)" in record.message
    assert "\n" not in record.message


def test_a_page_that_was_not_written_after_a_kill_is_mended_by_the_next_move(tmp_path):
    store = open_store(str(tmp_path / "store"))
    publish = partial(publish_small, store, tmp_path)
    publish(1)
    publish(2)
    promote(store, "tiny-1")
    publish(3)  # killed before it wrote the page
    assert "tiny-3" not in page_of(store)
    promote(store, "tiny-2")
    assert "tiny-3" in page_of(store)


def test_a_writer_that_read_the_store_before_another_change_does_not_overwrite_the_newer_page(
    store, publish, monkeypatch
):
    publish(1)
    honest, changed = page_module.store_page, []

    def change_meanwhile(store, **options):
        page = honest(store, **options)
        if not changed:
            changed.append(publish(2))
            rebuild_page(store)
        return page

    monkeypatch.setattr(page_module, "store_page", change_meanwhile)
    rebuild_page(store)
    assert "tiny-2" in page_of(store)


def test_of_many_writers_at_once_the_last_page_is_whole_and_has_every_change(store, publish):
    publish(1)

    def change(number):
        move_alias(store, f"tiny/alias-{number}", "tiny-1", why="a test")
        rebuild_page(store)

    threads = [threading.Thread(target=change, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    page = page_of(store)
    assert all(f"alias-{number}" in page for number in range(6))
    assert page.rstrip().endswith("</html>")


def test_no_two_pages_are_equal_so_that_a_writer_notices_every_other(tmp_path):
    store = open_store(str(tmp_path / "store"))
    assert store_page(store) != store_page(store)


def test_an_empty_store_has_a_page_that_names_the_first_step(tmp_path):
    assert "No release yet." in store_page(open_store(str(tmp_path / "store")))


def test_a_page_elsewhere_links_to_a_directory_and_not_to_a_bucket(store, tmp_path):
    publish_whole(store, tmp_path, "tiny-1a")
    target = tmp_path / "a directory/page.html"
    write_page(store, target)
    links = files_linked(target.read_text())
    if "://" in store.uri:
        assert links == []
        assert "srpo pull" in target.read_text()
    else:
        assert {(target.parent / link).resolve().name for link in links} == {"grid.png"}
        assert all((target.parent / link).is_file() for link in links)
    with pytest.raises(ConfigError, match="cannot be written"):
        write_page(store, tmp_path)


@pytest.mark.s3
def test_a_bucket_shows_the_page_as_a_page_and_never_an_old_one(bucket):
    store = open_store(f"s3://{bucket}/p")
    rebuild_page(store)
    head = Files(store).client.head_object(Bucket=bucket, Key="p/index.html")
    assert head["ContentType"] == "text/html; charset=utf-8"
    assert head["CacheControl"] == "no-cache"


def test_the_page_of_a_store_is_readable_by_those_who_can_read_the_store(tmp_path):
    store = open_store(str(tmp_path / "store"))
    umask = os.umask(0o022)
    try:
        rebuild_page(store)
    finally:
        os.umask(umask)
    assert (tmp_path / "store/index.html").stat().st_mode & 0o044 == 0o044


@pytest.mark.s3
@pytest.mark.parametrize("header", ["if-match", "if-none-match"])
def test_a_store_without_conditional_writes_keeps_the_page_of_the_last_writer(
    bucket, s3_environment, monkeypatch, caplog, tmp_path, header
):
    publish_small(open_store(f"s3://{bucket}/p"), tmp_path, 1)
    if header == "if-match":
        rebuild_page(open_store(f"s3://{bucket}/p"))
    proxy = FaultyProxy(s3_environment, without(header))
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    try:
        store = open_store(f"s3://{bucket}/p")
        before = page_of(store) if header == "if-match" else ""
        rebuild_page(store)
        assert page_of(store) != before
    finally:
        proxy.close()
    assert [one.message for one in caplog.records if one.levelname == "WARNING"] == []
