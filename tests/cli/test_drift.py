"""`srpo watch` compares data versions with the one of production, by styles and by the reward's agreement."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from data_of_production import make_version, promote_release_of
from small_release import publish_small
from standin import make_standin

from srpo_core.cli.drift import drift_rows, measure_drift, newest_version
from srpo_core.config import load_settings
from srpo_core.errors import ConfigError, DataError, StoreError
from srpo_core.release.aliases import move_alias
from srpo_core.release.training_data import TrainingData, data_of_production
from srpo_core.storage import DirectoryStore

ROOT = Path(__file__).resolve().parents[2]
HPD = ROOT / "assets/tiny/hpd"
COLUMNS = {"prompt": "prompt", "style": "style"}

pytestmark = pytest.mark.pipeline


def write_prompts(path, seed, shares, count=400):
    """Write prompts with styles that are drawn by shares."""
    generator = np.random.default_rng(seed)
    styles = generator.choice(sorted(shares), size=count, p=[shares[name] for name in sorted(shares)])
    rows = [{"prompt": f"prompt {seed} {number}", "style": style} for number, style in enumerate(styles)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A stand-in with the tiny reward and four data versions; return its path and the tags."""
    top = tmp_path_factory.mktemp("drift")
    path = make_standin(top / "standin")
    shutil.copytree(ROOT / "assets/tiny/family/reward", path / "assets/tiny/family/reward")
    reversed_order = top / "reversed"
    shutil.copytree(HPD, reversed_order)
    records = json.loads((HPD / "test.json").read_text())
    for record in records:
        record["rank"] = [max(record["rank"]) - rank for rank in record["rank"]]
    (reversed_order / "test.json").write_text(json.dumps(records))
    even = {"anime": 0.5, "photo": 0.5}
    tags = {
        "hpd": make_version(path, HPD, "hpd", "hpdv2", 1),
        "reversed": make_version(path, reversed_order, "hpd", "hpdv2", 2),
    }
    for day, (name, shares) in enumerate(
        {"old": even, "same": even, "moved": {"anime": 0.9, "photo": 0.1}}.items()
    ):
        source = write_prompts(top / f"{name}.jsonl", day, shares)
        tags[name] = make_version(path, source, "words", "prompts", day + 1, columns=COLUMNS)
    return path, tags


@pytest.fixture
def here(checkout, monkeypatch):
    monkeypatch.delenv("SRPO_HOME", raising=False)
    monkeypatch.chdir(checkout[0])
    return checkout


def settings_with(checkout, **watch):
    settings = load_settings(checkout / "params.yaml")
    check = settings.check_reward.model_copy(update={"max_pairs": 60})
    return settings.model_copy(
        update={"watch": settings.watch.model_copy(update=watch), "check_reward": check}
    )


def test_styles_that_moved_are_found_and_those_of_another_sample_are_not(here):
    path, tags = here
    production = TrainingData("tiny-1", tags["old"])
    assert newest_version(path, production) == tags["moved"]
    same = measure_drift(settings_with(path), production, tags["same"])
    moved = measure_drift(settings_with(path), production, tags["moved"])
    assert (same.is_beyond, moved.is_beyond) == (False, True)
    styles, agreement = moved.findings
    assert styles.moved.value == pytest.approx(0.4, abs=0.07)
    assert 0.1 < styles.moved.low < styles.moved.value
    assert agreement.moved is None
    assert "no pairs of images that people compared" in agreement.note
    assert moved.line.startswith("drift: styles moved by 0.")
    rows = {row["figure"]: row for row in drift_rows(moved)}
    assert rows["styles"]["outcome"] == "drift"
    assert rows["style photo"]["new"] == f"{moved.styles.after['photo'] / 400:.1%}"


def test_an_agreement_that_fell_is_found_and_the_same_data_have_none(here):
    path, tags = here
    production = TrainingData("tiny-1", tags["hpd"])
    moved = measure_drift(settings_with(path), production, tags["reversed"])
    styles, agreement = moved.findings
    assert styles.moved is None, "the words of tiny's prompts do not tell their styles"
    before, after = (one[0] for one in moved.agreement)
    assert agreement.moved.value == pytest.approx(after - before)
    assert agreement.moved.high < -0.5
    assert moved.is_beyond
    same = measure_drift(settings_with(path), production, tags["hpd"])
    assert same.findings[1].moved.value == 0.0
    assert not same.is_beyond


def test_a_file_of_prompts_is_known_by_its_prompts(here, tmp_path):
    path, tags = here
    production = TrainingData("tiny-1", tags["old"])
    moved = {"anime": 0.9, "photo": 0.1}
    file = write_prompts(tmp_path / "new.jsonl", 7, moved)
    lines = file.read_text().splitlines()
    (tmp_path / "other.jsonl").write_text("\n".join(reversed(lines)).replace("prompt 7", "Prompt  7") + "\n")
    found = [
        measure_drift(settings_with(path), production, str(one), prompts={"columns": COLUMNS})
        for one in (file, tmp_path / "other.jsonl", write_prompts(tmp_path / "third.jsonl", 8, moved))
    ]
    assert [one.is_beyond for one in found] == [True, True, True]
    assert found[0].identity == found[1].identity != found[2].identity


def test_what_cannot_be_compared_is_one_line(here, tmp_path):
    path, tags = here
    production = TrainingData("tiny-1", tags["hpd"])
    (tmp_path / "new.txt").write_text("a cat\na dog\n")
    with pytest.raises(DataError, match=r"nothing of .*new.txt can be compared .* styles cannot be assigned"):
        measure_drift(settings_with(path), production, str(tmp_path / "new.txt"), prompts={})
    with pytest.raises(DataError, match=r"nowhere\.txt is missing"):
        measure_drift(settings_with(path), production, "nowhere.txt", prompts={})
    with pytest.raises(ConfigError, match="both null"):
        measure_drift(settings_with(path, styles=None, agreement=None), production, tags["reversed"])
    with pytest.raises(ConfigError, match="there is no data version 'data/hpd/0'"):
        measure_drift(settings_with(path), production, "data/hpd/0")


def test_the_data_version_of_production_is_found_by_its_files_and_settings(here, tmp_path):
    path, tags = here
    store = DirectoryStore(tmp_path / "store")
    assert "no release of tiny is in production" in data_of_production(store, "tiny", path)
    release = promote_release_of(path, tmp_path / "store", 1, tags["old"])
    assert data_of_production(store, "tiny", path) == TrainingData(release, tags["old"])
    other = promote_release_of(path, tmp_path / "store", 2, tags["old"], {"test_share": 0.5})
    with pytest.raises(ConfigError, match=f"{other}.* no tag of .* is of it: 'git fetch --tags'"):
        data_of_production(store, "tiny", path)


@pytest.mark.parametrize(
    ("lineage", "line"),
    [
        (None, "does not record its data"),
        ({"data": None}, "does not record its data"),
        (
            {"data": {"name": "assets/tiny/hpd", "md5": "1"}},
            "assets/tiny/hpd, which is no data version: 'srpo data",
        ),
    ],
)
def test_a_release_without_a_data_version_is_nothing_to_compare_with(here, tmp_path, lineage, line):
    path, _ = here
    store = DirectoryStore(tmp_path / "store")
    version = publish_small(store, tmp_path, 3, parts={} if lineage is None else {"lineage": lineage})
    move_alias(store, "tiny/production", version, why="a test")
    assert line in data_of_production(store, "tiny", path)


def test_a_release_whose_settings_are_damaged_or_lost_is_an_error(here, tmp_path):
    path, tags = here
    release = promote_release_of(path, tmp_path / "store", 4, tags["old"])
    (params,) = (tmp_path / "store").glob(f"**/{release}/params.yaml")
    params.write_text(params.read_text().replace("prompts", "pairs  "))
    store = DirectoryStore(tmp_path / "store")
    with pytest.raises(StoreError, match=r"does not match its manifest|has \d+ bytes"):
        data_of_production(store, "tiny", path)
    params.unlink()
    with pytest.raises(StoreError, match=r"has lost params.yaml"):
        data_of_production(store, "tiny", path)


def test_versions_are_kept_apart_by_name(here):
    path, tags = here
    assert newest_version(path, TrainingData("tiny-1", tags["hpd"])) == tags["reversed"]
