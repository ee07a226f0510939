"""`srpo data show`, `diff` and `agreement` read versions by their tags, wherever the objects are."""

import json
import logging
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from standin import make_standin

from srpo_core.cli.app import OWN_PACKAGES
from srpo_core.cli.data_views import reward_agreement, show_version
from srpo_core.cli.main import main
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


@pytest.fixture
def srpo(standin, monkeypatch, capsys):
    """Run a command in the checkout; return its exit code, the words of each line it printed, and its errors."""

    levels = {name: logging.getLogger(name).level for name in OWN_PACKAGES}

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["srpo", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return ended.value.code, [line.split() for line in printed.out.splitlines()], printed.err

    yield run
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


class PrefersLightImages(torch.nn.Module):
    """Score an image by its mean."""

    def score(self, image, texts):
        return image.mean().expand(len(texts))


def test_versions_are_shown_and_compared_from_the_remote_without_touching_the_checkout(
    standin, tags, srpo, tmp_path
):
    before = sorted(
        path for path in standin.rglob("*") if ".srpo" not in path.parts and ".git" not in path.parts
    )
    first, second = tags
    own, compared = tmp_path / "own.html", tmp_path / "diff.html"
    for option, page in (
        ([], standin / ".srpo/data" / f"emoji-{second.rpartition('/')[2]}.html"),
        (["--page", own], own),
    ):
        code, lines, _ = srpo("data", "show", second, *option)
        assert (code, lines[-1]) == (0, ["page", str(page)])
        assert ["records", "train", "479"] in lines
        assert ["findings", "tied_record:", "set", "aside", "2"] in lines
        assert page.read_text().count("data:image/") == 24
        assert "tied_record" in page.read_text()

    code, lines, _ = srpo("data", "diff", first, second, "--page", compared)
    assert (code, lines[-1]) == (0, ["page", str(compared)])
    # added, removed, changed, unchanged
    assert [line for line in lines if line and line[0] in {"train", "test", "benchmark"}][:3] == [
        ["train", "0", "1", "1", "478"],
        ["test", "0", "0", "0", "160"],
        ["benchmark", "0", "0", "0", "40"],
    ]
    assert ["records", "train", "480", "479"] in lines
    assert first in compared.read_text()
    code, lines, _ = srpo("data", "diff", first, first)
    assert (code, lines[-1]) == (0, ["all", "figures", "are", "equal"])
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


def test_the_agreement_of_a_reward_is_measured_by_style(standin, tags, srpo, monkeypatch):
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

    code, lines, _ = srpo("data", "agreement", tags[0], "--max-pairs", 40)
    assert code == 0
    (printed,) = [" ".join(line) for line in lines if line[:2] == ["open_clip", "all"]]
    share, low, high, count = map(float, re.findall(r"[\d.]+", printed))
    assert low < share < high
    assert count == 40


def test_the_commands_end_with_one_line_and_the_exit_code_of_the_error(srpo, tags):
    usage = ConfigError.exit_code
    for command in (
        ["show", "data/emoji/0"],
        ["diff", tags[0], "data/emoji/0"],
        ["agreement", "data/emoji/0"],
    ):
        code, lines, error = srpo("data", *command)
        assert (code, lines) == (usage, [])
        assert re.fullmatch(rf"srpo: error: there is no data version 'data/emoji/0'.*{tags[0]}.*\n", error)
    code, _, error = srpo("data", "agreement", tags[0], "--max-pairs", 0)
    assert (code, error.count("\n")) == (usage, 1)
    assert "--max-pairs" in error
