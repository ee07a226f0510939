import json
import re

import pytest

TITLES = {"MIT": "Permission is hereby granted, free of charge", "Apache-2.0": "Version 2.0, January 2004"}


@pytest.fixture(scope="module")
def sources(tiny):
    return json.loads((tiny / "recipe/sources.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def texts(tiny):
    """NOTICE and the README of the tiny data, by name."""
    paths = {"NOTICE": tiny.parents[1] / "NOTICE", "README": tiny / "README.md"}
    return {name: path.read_text(encoding="utf-8") for name, path in paths.items()}


def test_every_source_is_named_with_its_version_in_notice_and_readme(sources, texts):
    for name, text in texts.items():
        for source in sources.values():
            entry = re.compile(rf"{re.escape(source['package'])}\b[`,]* {re.escape(source['version'])}")
            assert entry.search(text), f"{name} does not name {source['package']} {source['version']}"


def test_sources_and_licence_texts_match_one_to_one(tiny, sources, texts):
    named = {licence for source in sources.values() for licence in source["licences"]}
    assert named == {path.name for path in (tiny / "licences").iterdir()}
    for licence in named:
        [title] = [title for kind, title in TITLES.items() if licence.endswith(f"-{kind}.txt")]
        assert title in (tiny / "licences" / licence).read_text(encoding="utf-8")
        assert f"assets/tiny/licences/{licence}" in texts["NOTICE"]


def test_every_style_of_the_images_has_a_source(sources, data):
    assert sources.keys() == {*data.STYLES, "names"}


def test_all_versions_and_digests_are_pinned(sources):
    for source in sources.values():
        assert re.fullmatch(r"\d+\.\d+\.\d+", source["version"])
        assert re.fullmatch(r"sha512-[A-Za-z0-9+/]{86}==", source["integrity"])
