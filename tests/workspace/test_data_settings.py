"""What a data version remembers of the settings that read it, and the command that uses it."""

import json
import shlex
import shutil
from pathlib import Path

import pytest

from srpo_core.cli.options import parse_changes
from srpo_core.config import load_settings, patched_settings, write_settings
from srpo_core.errors import ConfigError
from srpo_core.preflight.data_needs import require_data
from srpo_core.workspace.data_settings import (
    as_options,
    next_command,
    open_noted,
    other_settings,
    run_patch,
    settings_to_note,
    uncommitted_settings,
)
from srpo_core.workspace.git import git, missing_identity

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def ingest():
    return load_settings(ROOT / "params.yaml").ingest


@pytest.fixture
def table(tmp_path):
    rows = [
        {"text": f"thing {number}", "good": f"{number}a.png", "bad": f"{number}b.png"} for number in range(60)
    ]
    (tmp_path / "votes.json").write_text(json.dumps(rows))
    return tmp_path


def test_a_version_is_read_as_when_it_was_made_whatever_the_settings_are_now(ingest, table):
    columns = {"prompt": "text", "chosen": "good", "rejected": "bad"}
    before = ingest.model_copy(update={"columns": columns, "test_share": 0.4})
    noted = settings_to_note(before, {"format": "pairs"})
    now = ingest.model_copy(update={"columns": {"prompt": "caption", "image": "jpg"}, "test_share": 0.1})
    sizes = [
        [sum(1 for _ in open_noted(table, today, noted, {}).choices(split)) for split in ("train", "test")]
        for today in (before, now)
    ]
    assert sizes[0] == sizes[1]
    assert sum(sizes[0]) == 60
    assert sizes[0][1] > 10
    assert json.loads(json.dumps(noted)) == noted


def test_settings_of_an_old_version_are_those_that_it_notes_and_todays(ingest, table):
    noted = {"format": "pairs", "columns": {"prompt": "text", "chosen": "good", "rejected": "bad"}}
    kept = open_noted(table, ingest.model_copy(update={"test_share": 0.5}), noted, None)
    assert 15 < sum(1 for _ in kept.choices("test")) < 45


def test_settings_that_read_a_version_otherwise_are_named(ingest):
    before = settings_to_note(ingest, {"format": "pairs", "test_share": 0.1})
    assert other_settings(before, before) == ""
    now = settings_to_note(
        ingest, {"format": "pairs", "test_share": 0.25, "rules": {"tied_record": "critical"}}
    )
    assert other_settings(before, now) == (
        'ingest.test_share 0.1 instead of 0.25, ingest.rules.tied_record "warning" instead of "critical"'
    )
    assert other_settings({"format": "hpdv2"}, before) == 'ingest.format "hpdv2" instead of "pairs"'


@pytest.mark.parametrize("format_name", ["hpdv2", "pairs", "images", "prompts"])
def test_a_run_with_the_next_command_has_the_format_and_what_it_needs(format_name):
    changes = as_options({"test_share": 0.3, "rules": {"tied_record": "critical"}})
    words = shlex.split(next_command("data/a/0123", "a", format_name, changes))
    assert words[:4] == ["srpo", "align", "--revision", "data/a/0123"]
    assert words[4::2] == ["--set"] * len(words[4::2])
    patch = parse_changes(["ingest.format=pairs", "train.rollout.source=offline", *words[5::2]])
    settings = patched_settings(ROOT, profile=None, patch=patch)
    # the user chooses which metric takes the place of one that needs real images (docs/data.md)
    require_data(
        settings.model_copy(update={"evaluate": settings.evaluate.model_copy(update={"metrics": []})})
    )
    assert (settings.ingest.format, settings.ingest.test_share) == (format_name, 0.3)
    assert settings.ingest.rules.tied_record == "critical"
    assert f"ingest.format={format_name}" in words
    given = {"test_share": 0.3, "rules": {"tied_record": "critical"}}
    assert run_patch("a", format_name, given) == parse_changes(words[5::2])


@pytest.fixture
def committed(tmp_path):
    """A repository whose commit has the params.yaml of a preset for FLUX.1, with names of columns."""
    git(tmp_path, "init", "--quiet")
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    write_settings(
        tmp_path, profile="flux1_dev", patch={"ingest": {"columns": {"prompt": "text", "style": "kind"}}}
    )
    git(tmp_path, "add", "params.yaml")
    git(tmp_path, "commit", "--quiet", "-m", "settings", environment=missing_identity(tmp_path))
    return tmp_path


def test_settings_of_ingest_that_are_not_committed_are_changes_and_others_are_not(committed):
    assert uncommitted_settings(committed) == {}
    changed = {
        "source": "elsewhere",
        "check_images": "used",
        "on_bad_record": "stop",
        "rules": {"tied_record": "critical"},
        "columns": {"prompt": "caption"},
    }
    write_settings(committed, profile=None, patch={"seed": 7, "ingest": changed})
    assert uncommitted_settings(committed) == {
        "on_bad_record": "stop",
        "rules": {"tied_record": "critical"},
        "columns": {"prompt": "caption"},
    }


def test_a_column_that_is_removed_and_not_committed_is_refused(committed):
    path = committed / "params.yaml"
    path.write_text("\n".join(line for line in path.read_text().splitlines() if "style: kind" not in line))
    with pytest.raises(ConfigError, match=r"^params\.yaml .* ingest\.columns .* commit params\.yaml$"):
        uncommitted_settings(committed)
