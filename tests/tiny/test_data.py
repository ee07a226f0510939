import base64
import hashlib
import io
import json
import random
import sys
import tarfile
from collections import Counter
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from PIL import Image

WHITE, RED = (255, 255, 255), (255, 0, 0)
STUDIO, BELL, CHILD = "\U0001f399\ufe0f", "🔔", "🧒"
NAMES = {
    BELL: {"name": "Bell’s", "group": "Objects"},
    STUDIO: {"name": "studio microphone", "group": "Objects"},
    CHILD: {"name": "child", "group": "People & Body"},
    "🚀": {"name": "rocket", "group": "Travel & Places"},
}
ICONS = {
    "width": 32,
    "height": 32,
    "icons": {
        "bell": {"body": "<path/>"},
        "tall": {"body": "<path/>", "height": 40},
        "child": {"body": "<path/>"},
    },
}
CHARS = {"1f514": "bell", "1f399": "tall", "1f9d2": "child"}


def encoded(colour, size=64, form="WEBP"):
    buffer = io.BytesIO()
    Image.new("RGBA", (size, size), colour).save(buffer, form)
    return buffer.getvalue()


@pytest.fixture
def packages():
    """Two subjects that exist in all styles, one excluded by its group, and one missing in the SVG packages."""
    clear = encoded((0, 0, 0, 0), 256)
    iconify = {"icons.json": json.dumps(ICONS).encode(), "chars.json": json.dumps(CHARS).encode()}
    return {
        "names": {"data-by-emoji.json": json.dumps(NAMES).encode()},
        "3D": {f"assets/{code}.webp": clear for code in ("1f514", "1f399-fe0f", "1f9d2", "1f680")},
        **dict.fromkeys(("Flat", "Ink", "Noto"), iconify),
    }


@pytest.fixture
def resvg(monkeypatch):
    """Replace the renderer; record its arguments."""
    asked = []

    def svg_to_bytes(**options):
        asked.append(options)
        return encoded(RED, options["width"], "PNG")

    monkeypatch.setitem(sys.modules, "resvg_py", SimpleNamespace(svg_to_bytes=svg_to_bytes))
    return asked


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """Return a function that replaces the command npm by a shell script."""

    def install(script):
        commands = tmp_path / "commands"
        commands.mkdir()
        (commands / "npm").write_text(f"#!/bin/sh\n{script}\n")
        (commands / "npm").chmod(0o755)
        monkeypatch.setenv("PATH", str(commands))

    return install


def archive(path, files):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return "sha512-" + base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()


def row(**change):
    shared = {"emoji": BELL, "name": "bell", "group": "Objects", "style": "3D", "split": "train"}
    return {**shared, "image": encoded(WHITE), **change}


def test_the_splits_of_the_shipped_table_follow_the_rule(data, tiny):
    table = pq.read_table(tiny / "data/emoji4.parquet", columns=["emoji", "split"]).to_pylist()
    shipped = {entry["emoji"]: entry["split"] for entry in table}
    assert data.splits(list(shipped)) == shipped
    assert Counter(shipped.values()) == {"train": 919, "eval": 244, "novel": 61}
    order = random.Random(1).sample(list(shipped), len(shipped))
    assert data.splits(order) != shipped


def test_only_subjects_that_exist_in_all_styles_become_rows(data, packages, resvg):
    rows = data.build(packages)
    assert [(entry["name"], entry["style"]) for entry in rows] == [
        (name, style) for name in ("bell's", "studio microphone") for style in ("3D", "Flat", "Ink", "Noto")
    ]
    assert list(rows[0]) == list(data.COLUMNS)
    for entry, colour in zip(rows[:2], (WHITE, RED), strict=True):
        picture = Image.open(io.BytesIO(entry["image"]))
        assert (picture.format, picture.size) == ("WEBP", (64, 64))
        assert (
            max(abs(a - b) for a, b in zip(picture.convert("RGB").getpixel((32, 32)), colour, strict=True))
            < 5
        )
    assert {(options["background"], options["width"]) for options in resvg} == {("white", 128)}
    assert ['viewBox="0 0 32 40"' in options["svg_string"] for options in resvg] == [False] * 3 + [True] * 3


def test_the_alphabetically_first_of_two_images_of_an_emoji_is_used(data):
    files = {"assets/1f399.webp": encoded(RED), "assets/1f399-fe0f.webp": encoded(WHITE)}
    assert data.drawn_by_pixels(files)(STUDIO).getpixel((0, 0)) == WHITE
    files = {
        "assets/1f441-200d-1f5e8.webp": encoded(WHITE),
        "assets/1f441-fe0f-200d-1f5e8.webp": encoded(RED),
    }
    assert data.drawn_by_pixels(files)("\U0001f441\ufe0f\u200d\U0001f5e8").getpixel((0, 0)) == WHITE


def test_a_table_is_read_as_written_and_leaves_no_partial_file(data, tmp_path):
    rows = [row(), row(style="Ink")]
    data.write(rows, tmp_path / "new/table.parquet")
    assert data.read(tmp_path / "new/table.parquet") == rows
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["table.parquet"]


def test_the_comparison_counts_equal_images_and_measures_the_others(data):
    theirs = [row(), row(emoji="🚀"), row(style="Ink", split="eval"), row(style="Noto")]
    ours = [row(), row(emoji="🚀", image=encoded((0, 0, 0))), row(style="Ink")]
    lines = list(data.compare(ours, theirs))
    assert lines[0] == (
        "3D: 2 pictures, 1 with the same bytes, 1 with the same pixels, mean absolute difference 127.500 of 255"
    )
    assert lines[2].startswith("Ink: 1 pictures, 1 with the same bytes")
    assert lines[-1] == "rows: 1 in one table only, 1 with another name, group or split"


def test_an_npm_package_is_read_if_its_digest_matches_the_pinned_one(data, npm, tmp_path):
    integrity = archive(tmp_path / "ready.tgz", {"assets/a.webp": b"picture"})
    npm(f'[ "$1 $2" = "pack @set/a@1.0.0" ] && /bin/cp "{tmp_path}/ready.tgz" "$5/a.tgz"')
    assert data.read_packages({"3D": data.Source("@set/a", "1.0.0", integrity)}) == {
        "3D": {"assets/a.webp": b"picture"}
    }
    with pytest.raises(
        SystemExit, match=r"^@set/a 1.0.0: the archive is not the one that sources.json names"
    ):
        data.read_packages({"3D": data.Source("@set/a", "1.0.0", "sha512-other")})


def test_a_failure_of_npm_gives_a_one_line_error(data, npm, tmp_path):
    npm("echo 'npm error code E404' >&2; echo 'npm error more' >&2; exit 1")
    with pytest.raises(SystemExit) as caught:
        data.fetch(data.Source("a", "1.0.0", ""), tmp_path)
    assert str(caught.value) == "npm pack a@1.0.0 failed: npm error code E404"


def test_a_missing_npm_is_named(data, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match=r"npm is missing: install Node\.js"):
        data.fetch(data.Source("a", "1.0.0", ""), tmp_path)


def test_a_missing_renderer_is_named_with_its_install_command_before_any_download(
    data, npm, monkeypatch, tmp_path
):
    npm(f"echo > {tmp_path}/asked; exit 1")
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    monkeypatch.setattr(sys, "argv", ["data", "--target", str(tmp_path / "new.parquet")])
    with pytest.raises(SystemExit, match=r"^resvg-py is missing, .*: pip install resvg-py$"):
        data.main()
    assert not (tmp_path / "asked").exists()


def test_an_existing_table_is_never_overwritten(data, resvg, monkeypatch, tmp_path):
    target = tmp_path / "table.parquet"
    target.write_bytes(b"precious")
    monkeypatch.setattr(sys, "argv", ["data", "--target", str(target)])
    with pytest.raises(SystemExit, match="exists: remove it, or name another file with --target"):
        data.main()
    assert target.read_bytes() == b"precious"


def test_an_invalid_table_to_compare_with_gives_a_one_line_error(data, tmp_path):
    (tmp_path / "text").write_text("no table")
    for path in (tmp_path / "text", tmp_path / "missing"):
        with pytest.raises(SystemExit, match="cannot be read as a table of pictures") as caught:
            data.read(path)
        assert "\n" not in str(caught.value)
