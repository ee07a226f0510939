"""`srpo data show`, `diff` and `agreement` read versions by their tags, wherever the objects are."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from standin import make_standin

from srpo_core.cli.data_views import compare_versions, reward_agreement, show_version
from srpo_core.config import load_settings
from srpo_core.data.decoding import read_image
from srpo_core.data.kept import open_kept
from srpo_core.data.tables import to_tensor
from srpo_core.errors import ConfigError, StoreError
from srpo_core.workspace import data_versions
from srpo_core.workspace.data_view import open_version
from srpo_core.workspace.git import git
from srpo_core.workspace.worktree import open_workspace

ROOT = Path(__file__).resolve().parents[2]
HPD = ROOT / "assets/tiny/hpd"
FINDINGS = {"tied_record": {"found": 3, "set_aside": 2, "severity": "warning"}}
pytestmark = pytest.mark.pipeline


def add_version(checkout, source, findings):
    with open_workspace(checkout, revision="HEAD") as workspace:
        data_versions.collect(source, workspace.path / "data/emoji", "hpdv2")
        tag = data_versions.track(workspace, "emoji")
        data_versions.push(workspace, "emoji")
        data_versions.commit(workspace, "emoji", tag, {"format": "hpdv2"}, findings)
        return tag


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A checkout with two versions, of which only the remote has the objects: made once, it takes seconds."""
    root = tmp_path_factory.mktemp("made")
    source, checkout = shutil.copytree(HPD, root / "source"), make_standin(root / "standin")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("SRPO_HOME", "GIT_DIR", "GIT_INDEX_FILE", "DVC_SITE_CACHE_DIR"):
            patch.delenv(name, raising=False)
        first = add_version(checkout, source, {})
        pairs = json.loads((source / "train.json").read_text())
        pairs[0]["human_preference"].reverse()
        (source / "train.json").write_text(json.dumps(pairs[:-1]))
        second = add_version(checkout, source, FINDINGS)
    shutil.rmtree(checkout / ".dvc/cache")
    shutil.rmtree(checkout / ".srpo/runs")
    git(checkout, "worktree", "prune")
    return checkout, (first, second)


@pytest.fixture
def standin(made, tmp_path, monkeypatch):
    """A copy of the checkout as the current directory."""
    for name in ("SRPO_HOME", "GIT_DIR", "GIT_INDEX_FILE", "DVC_SITE_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    path = shutil.copytree(made[0], tmp_path / "standin")
    monkeypatch.chdir(path)
    return path


@pytest.fixture
def tags(made):
    """The tags of the two versions."""
    return made[1]


def test_versions_are_shown_and_compared_from_the_remote_without_touching_the_checkout(standin, tags):
    before = sorted(
        path for path in standin.rglob("*") if ".srpo" not in path.parts and ".git" not in path.parts
    )
    page, figures = show_version(tags[1], None)
    assert page == standin / ".srpo/data" / f"emoji-{tags[1].rpartition('/')[2]}.html"
    text = page.read_text()
    assert text.count("data:image/") == 24
    assert "tied_record" in text
    values = {(one.group, one.name): one.value for one in figures}
    assert values["records", "train"] == 479
    assert values["findings", "tied_record: set aside"] == 2

    changes, moves = compare_versions(*tags, standin.parent / "diff.html")
    counts = {split: (one.added, one.removed, one.changed) for split, one in changes.items()}
    assert counts == {"train": (0, 1, 1), "test": (0, 0, 0), "benchmark": (0, 0, 0)}
    assert [
        (one.value, other.value)
        for one, other in moves
        if one and (one.group, one.name) == ("records", "train")
    ] == [(480, 479)]
    assert tags[0] in (standin.parent / "diff.html").read_text()
    after = [path for path in standin.rglob("*") if ".srpo" not in path.parts and ".git" not in path.parts]
    assert sorted(path for path in after if ".dvc/cache" not in str(path)) == before
    assert git(standin, "status", "--porcelain") == ""
    assert [path.name for path in (standin / ".srpo/data-views").iterdir()] == [
        "lock"
    ]  # no directory of links


def test_a_version_that_cannot_be_read_gives_one_line(standin, tags):
    with pytest.raises(ConfigError, match=rf"no data version 'data/emoji/0': .* known are .*{tags[0]}"):
        show_version("data/emoji/0", None)
    remote = standin / ".srpo/dvc-remote"
    largest = max(
        (path for path in remote.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )
    content = largest.read_bytes()
    largest.chmod(0o644)
    largest.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    with pytest.raises(StoreError, match=r"lacks 1 of \d+ objects of .* other bytes") as raised:
        show_version(tags[0], None)
    assert "\n" not in str(raised.value)
    shutil.rmtree(remote)
    with pytest.raises(StoreError, match=r"lacks \d+ of \d+ objects of data/emoji"):
        show_version(tags[1], None)


def test_links_of_killed_readers_are_removed_at_the_next_start_and_those_of_live_ones_are_not(standin, tags):
    views = standin / ".srpo/data-views"
    (views / "killed/files").mkdir(parents=True)
    (views / "killed/lock").touch()
    with open_version(standin, tags[0]) as first, open_version(standin, tags[1]) as second:
        assert not (views / "killed").exists()
        assert all((version.path / "train.json").is_file() for version in (first, second))
    assert [path.name for path in views.iterdir()] == ["lock"]


def test_a_damaged_configuration_of_dvc_gives_one_line(standin, tags):
    (standin / ".dvc/config.local").write_text("secret_access_key: wJalr-secret\n")
    with pytest.raises(
        ConfigError, match=r"config.local is not a configuration that DVC can read \(line 1: "
    ):
        show_version(tags[0], None)


def test_the_agreement_of_a_reward_is_measured_by_style(standin, tags, monkeypatch):
    class PrefersLightImages(torch.nn.Module):
        """Score an image by its mean."""

        def score(self, image, texts):
            return image.mean().expand(len(texts))

    monkeypatch.setattr("srpo_core.scorers.load_rewards", lambda _: PrefersLightImages())
    rows = reward_agreement(tags[0], None)
    assert [(name, style) for name, style, _ in rows] == [
        ("open_clip", style) for style in ("all", "food", "nature", "objects")
    ]
    whole, *parts = [share for _, _, share in rows]
    assert whole.count == 320 == sum(share.count for share in parts)
    assert whole.share * 320 == pytest.approx(sum(share.share * share.count for share in parts))
    assert all(share.low < share.share < share.high for share in (whole, *parts))

    # counted by hand: the share of pairs whose preferred image is lighter
    with open_version(Path.cwd(), tags[0]) as version:
        source = open_kept(
            load_settings(ROOT / "params.yaml").ingest.model_copy(update={"source": str(version.path)})
        )
        pairs = [pair for choice in source.choices("test") for pair in choice.pairs()]
        with source.images("test") as images:
            light = {name: to_tensor(read_image(images.read(name))).mean() for pair in pairs for name in pair}
    assert whole.share == sum(bool(light[a] > light[b]) for a, b in pairs) / 320
    assert next(share.count for _, _, share in reward_agreement(tags[0], 40)) == 40
