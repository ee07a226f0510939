"""The list of releases."""

import pytest

from srpo_core.errors import StoreError
from srpo_core.release.aliases import resolve
from srpo_core.release.summary import list_releases
from srpo_core.storage import open_store


def test_the_list_has_versions_aliases_formats_and_sizes(release):
    store, published = release
    (line,) = list_releases(store)
    assert line.version == published.version
    assert line.aliases == ("candidate",)
    assert line.formats == ("bf16", "fp8_e4m3fn", "q8_0")
    assert 15e6 < line.num_bytes < 40e6


def test_an_empty_store_has_no_releases(tmp_path):
    store = open_store(str(tmp_path / "store"))
    assert list_releases(store) == []
    with pytest.raises(StoreError, match="has no release 'candidate': known are none"):
        resolve(store, "candidate")
