"""Licence texts are published, so nothing outside the checkout may pass as one."""

from pathlib import Path

import pytest

from srpo_core.config import load_settings
from srpo_core.errors import ConfigError
from srpo_core.release.layout import _licences

ROOT = Path(__file__).resolve().parents[2]


def licences(root, names):
    settings = load_settings(ROOT / "profiles/tiny.yaml")
    release = settings.release.model_copy(update={"license_files": names})
    return _licences(root, settings.model_copy(update={"release": release}))


@pytest.fixture
def root(tmp_path):
    (tmp_path / "checkout/docs").mkdir(parents=True)
    (tmp_path / "secret").write_text("outside")
    (tmp_path / "checkout/LICENSE").write_text("the terms")
    (tmp_path / "checkout/link").symlink_to(tmp_path / "secret")
    (tmp_path / "checkout/docs/inside").symlink_to("../LICENSE")
    return tmp_path / "checkout"


@pytest.mark.parametrize("name", ["/etc/hostname", "../secret", "docs/../../secret", "link"])
def test_a_licence_text_outside_the_checkout_is_refused(root, name):
    with pytest.raises(ConfigError, match="which is outside the checkout, and it would be published"):
        licences(root, ("LICENSE", name))


def test_a_licence_text_in_the_checkout_is_taken_also_through_a_link_inside(root):
    assert set(licences(root, ("LICENSE", "docs/inside"))) == {"LICENSE", "inside"}
