import filecmp
import io
import json
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from ingest_arguments import ingest_arguments
from PIL import Image

from srpo_core import artifacts
from srpo_core.data.images import open_images
from srpo_core.data.tables import NUM_EXAMPLES, choose_examples, read_images, read_pairs, read_prompts
from srpo_core.errors import DataError
from srpo_core.stages.embed import preferred_images
from srpo_core.stages.ingest import run

TINY = Path(__file__).resolve().parents[2] / "assets/tiny"
SUBJECTS = json.loads((TINY / "family/subjects.json").read_text(encoding="utf-8"))
TRAIN, TEST = SUBJECTS["train"], SUBJECTS["eval"]
STYLES = 4


def arguments(source, changed=None, **changes):
    """The arguments of the preset tiny with another source, and all images that training could start from."""
    return ingest_arguments(
        {"source": str(source), **(changed or {})},
        **{"train_rollout_source": "offline", "evaluate_real_images": 0} | changes,
    )


@pytest.fixture(scope="module")
def ingested(tmp_path_factory):
    """A directory with the ingested tiny set."""
    directory = tmp_path_factory.mktemp("ingested")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        run(**arguments(TINY / "hpd"))
    return directory


@pytest.fixture
def tiny(ingested, monkeypatch):
    monkeypatch.chdir(ingested)


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """A copy of the tiny set to break; the stage runs on it."""
    shutil.copytree(TINY / "hpd", tmp_path / "hpd")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hpd"


def error_of_run():
    with pytest.raises(DataError) as caught:
        run(**arguments("hpd"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def run_with(settings):
    run(**arguments("hpd") | {"ingest": settings})


def records(path):
    return json.loads(path.read_text(encoding="utf-8"))


def index_with(path, key, value):
    """Return the index of the first record whose entry under the key contains the value."""
    return next(number for number, record in enumerate(records(path)) if value in record[key])


def repack(path, change):
    """Rewrite a tar; change maps the name and content of a member to new content, None to leave it out."""
    with tarfile.open(path) as archive:
        members = [(name, archive.extractfile(name).read()) for name in archive.getnames()]
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            new = change(name, content)
            if new is not None:
                header = tarfile.TarInfo(name)
                header.size = len(new)
                archive.addfile(header, io.BytesIO(new))


@pytest.mark.usefixtures("tiny")
def test_the_three_splits_are_disjoint_and_complete():
    texts = {
        split: [prompt.text for prompt in read_prompts(split)] for split in ("train", "validation", "test")
    }
    assert sum(map(len, texts.values())) == len(set().union(*texts.values())) == len(TRAIN + TEST)
    assert sorted(texts["train"] + texts["validation"]) == sorted(TRAIN)
    assert sorted(texts["test"]) == sorted(TEST)
    assert 0.1 < len(texts["validation"]) / len(TRAIN) < 0.3
    lists = {path.stem: records(path) for path in (TINY / "hpd/benchmark").glob("*.json")}
    assert Counter(prompt.style for prompt in read_prompts("test")) == {
        name: len(prompts) for name, prompts in lists.items()
    }
    assert {prompt.style for prompt in read_prompts("train")} == {""}


@pytest.mark.usefixtures("tiny")
def test_prompts_are_numbered_in_the_order_of_the_source():
    table = pq.read_table(artifacts.PROMPTS).to_pydict()
    assert table["prompt_id"] == list(range(len(TRAIN + TEST)))
    assert table["prompt"][: len(TRAIN)] == TRAIN


@pytest.mark.usefixtures("tiny")
def test_only_the_preferred_image_shows_the_subject_and_both_have_the_same_style():
    rows = pq.read_table(TINY / "data/emoji4.parquet").to_pylist()
    known = {row["image"]: (row["name"], row["style"]) for row in rows}
    pairs = read_pairs("train") + read_pairs("test")
    shows = {}
    for split in ("train", "test"):
        with open_images(TINY / "hpd", split) as stored:
            for path in {path for pair in pairs for path in (pair.preferred, pair.rejected)}:
                if path.startswith(split):
                    shows[path] = known[stored.read(path.removeprefix(f"{split}/"))]
    assert len(pairs) == (len(TRAIN) + 2 * len(TEST)) * STYLES
    for pair in pairs:
        (subject, style), (other, other_style) = shows[pair.preferred], shows[pair.rejected]
        assert subject == pair.prompt != other
        assert style == other_style


@pytest.mark.usefixtures("tiny")
def test_no_image_is_preferred_more_often_than_rejected():
    # otherwise a reward could agree with the pairs while ignoring the prompt
    pairs = read_pairs("train") + read_pairs("test")
    assert Counter(pair.preferred for pair in pairs) == Counter(pair.rejected for pair in pairs)


@pytest.mark.usefixtures("tiny")
def test_the_images_are_stored_by_path_with_their_size():
    table = pq.read_table(artifacts.IMAGES)
    paths = table["path"].to_pylist()
    assert paths == sorted(paths)
    in_training = [prompt.text for prompt in read_prompts("train")]
    assert len(set(paths)) == len(paths) == len(TEST) * STYLES + len(in_training)
    assert set(table["width"].to_pylist()) == set(table["height"].to_pylist()) == {64}
    stored = dict(zip(paths, table["image"].to_pylist(), strict=True))
    for split in ("train", "test"):
        with open_images(TINY / "hpd", split) as images:
            own = {path: image for path, image in stored.items() if path.startswith(f"{split}/")}
            assert own
            assert own == {path: images.read(path.removeprefix(f"{split}/")) for path in own}


@pytest.mark.usefixtures("tiny")
def test_the_result_of_the_checks_is_kept():
    checks = artifacts.read_json(artifacts.VALIDATION)
    assert sorted(checks) == ["pairs", "prompts", "records"]
    assert all(check["success"] for table in ("pairs", "prompts") for check in checks[table])


def stored_paths():
    return set(pq.read_table(artifacts.IMAGES, columns=["path"])["path"].to_pylist())


@pytest.mark.usefixtures("broken")
@pytest.mark.parametrize(
    ("rollout", "max_pairs", "real_images"), [("online", 5, 0), ("online", 3, 7), ("hybrid", 5, 0)]
)
def test_exactly_the_images_that_later_stages_read_are_stored(rollout, max_pairs, real_images):
    run(
        **arguments(
            "hpd",
            train_rollout_source=rollout,
            check_reward_max_pairs=max_pairs,
            evaluate_real_images=real_images,
        )
    )
    pairs = choose_examples(NUM_EXAMPLES) + read_pairs("test", max_pairs)
    expected = {path for pair in pairs for path in (pair.preferred, pair.rejected)}
    for split in ("train", "test"):
        expected |= {pair.preferred for pair in read_pairs(split, real_images)} if real_images else set()
    if rollout != "online":
        expected |= set(preferred_images([prompt.text for prompt in read_prompts("train")]))
    assert stored_paths() == expected
    assert any(path.startswith("train/") for path in expected) is (rollout != "online" or real_images > 0)
    assert len(expected) < len(TRAIN + TEST) * STYLES


def test_a_run_that_uses_no_image_of_an_archive_does_not_open_it(broken):
    (broken / "train.tar").write_bytes(b"still being downloaded")
    unused = {"train_rollout_source": "online", "evaluate_real_images": 0}
    run(**arguments("hpd", {"check_images": "used"}, **unused))
    assert all(path.startswith("test/") for path in stored_paths())
    with pytest.raises(DataError, match=r"train\.tar: not a readable tar archive"):
        run(**arguments("hpd", {"check_images": "all"}, **unused))
    (broken / "train.tar").unlink()
    run(**arguments("hpd", {"check_images": "used"}, **unused))
    assert all(path.startswith("test/") for path in stored_paths())
    for checked, changes in (("all", unused), ("used", {"train_rollout_source": "offline"})):
        with pytest.raises(DataError, match=r"images of 'train' must be in exactly one"):
            run(**arguments("hpd", {"check_images": checked}, **changes))


def test_a_damaged_image_that_no_setting_uses_is_found_only_if_all_are_checked(broken):
    unused = {"train_rollout_source": "online", "evaluate_real_images": 0}
    run(**arguments("hpd", {"check_images": "used"}, **unused))
    # a run that starts from real images uses it
    name = preferred_images([read_prompts("train")[0].text])[0].removeprefix("train/")
    repack(broken / "train.tar", lambda member, content: content[:200] if member == name else content)
    run(**arguments("hpd", {"check_images": "used"}, **unused))
    for checked, rollout in (("all", "online"), ("used", "offline")):
        changes = unused | {"train_rollout_source": rollout}
        with pytest.raises(DataError, match=f"image '{name}' .*cannot be decoded"):
            run(**arguments("hpd", {"check_images": checked}, **changes))


@pytest.mark.parametrize("checked", ["all", "used"])
def test_the_images_of_a_sample_without_the_records_set_aside_are_checked_and_stored(broken, checked):
    settings = {"check_images": checked, "on_bad_record": "quarantine", "max_bad_share": 1.0}
    few = {"train_rollout_source": "online", "evaluate_real_images": 3, "check_reward_max_pairs": 4}
    run(**arguments("hpd", settings, **few))
    first = {path.removeprefix("test/") for path in stored_paths() if path.startswith("test/")}
    bad = set(sorted(first)[::3])
    repack(broken / "test.tar", lambda member, content: content[:200] if member in bad else content)
    run(**arguments("hpd", settings, **few))
    left = read_pairs("test")
    assert not bad & {path.removeprefix("test/") for pair in left for path in (pair.preferred, pair.rejected)}
    needed = {
        path
        for pair in choose_examples(NUM_EXAMPLES) + read_pairs("test", 4)
        for path in (pair.preferred, pair.rejected)
    }
    assert needed <= stored_paths()
    assert set(read_images(needed)) == needed
    assert not {f"test/{name}" for name in bad} & stored_paths()


def test_an_image_on_its_side_reaches_later_stages_upright(broken):
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.new("RGB", (64, 48), "blue")
    stored.paste("red", (0, 0, 8, 48))  # its left edge is the upper edge that people see
    file = io.BytesIO()
    stored.save(file, "WEBP", lossless=True, exif=exif)
    name = records(broken / "test.json")[0]["image_path"][0]
    repack(broken / "test.tar", lambda member, content: file.getvalue() if member == name else content)
    run(**arguments("hpd"))
    row = next(row for row in pq.read_table(artifacts.IMAGES).to_pylist() if row["path"] == f"test/{name}")
    assert (row["width"], row["height"]) == (48, 64)
    image = read_images([row["path"]])[row["path"]]
    assert image.size == (48, 64)
    assert image.getpixel((40, 2)) == (255, 0, 0)
    assert image.getpixel((40, 60)) == (0, 0, 255)


def test_a_second_run_writes_the_same_bytes(ingested, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stale = artifacts.IMAGES / "00009.parquet"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"of an earlier run")
    run(**arguments(TINY / "hpd"))
    first, second = (
        sorted(path.relative_to(top) for path in (top / "runs").rglob("*") if path.is_file())
        for top in (ingested, tmp_path)
    )
    assert len(first) == 5
    assert first == second
    assert filecmp.cmpfiles(ingested, tmp_path, first, shallow=False) == (first, [], [])


def test_a_missing_image_is_named_with_its_record(broken):
    repack(broken / "train.tar", lambda name, content: None if name == "00000008.webp" else content)
    record = index_with(broken / "train.json", "file_path", "00000008.webp")
    expected = f"hpd/train.json: record {record}: image '00000008.webp' is not in hpd/train.tar"
    assert f"{expected} (1 of {len(TRAIN) * STYLES}" in error_of_run()


def test_an_image_that_cannot_be_decoded_is_named_with_its_record(broken):
    repack(broken / "test.tar", lambda name, content: content[:300] if name == "00000004.webp" else content)
    record = index_with(broken / "test.json", "image_path", "00000004.webp")
    message = error_of_run()
    assert message.startswith(
        f"hpd/test.json: record {record}: image '00000004.webp' of hpd/test.tar cannot be decoded: "
    )
    assert not artifacts.VALIDATION.exists()


def test_a_broken_json_record_is_named_with_line_and_column(broken):
    path = broken / "train.json"
    record = next(number for number, entry in enumerate(records(path)) if entry["human_preference"] == [1, 0])
    path.write_text(path.read_text(encoding="utf-8").replace("[1, 0]", "[1, 0", 1), encoding="utf-8")
    # one line per record, after the line with the opening bracket
    assert error_of_run().startswith(
        f"hpd/train.json: record {record}: broken JSON at line {record + 2}, column 37"
    )


def test_a_prompt_of_the_benchmark_must_not_be_trained_on(broken):
    (broken / "benchmark/more.json").write_text(json.dumps(TRAIN[:1]), encoding="utf-8")
    assert error_of_run().startswith(
        f"hpd/benchmark/more.json: record 0: prompt {TRAIN[0]!r} is also in hpd/train.json"
    )


def test_a_prompt_of_the_benchmark_must_not_be_trained_on_in_another_spelling(broken):
    spelled = TRAIN[0].upper().replace(" ", "\u00a0 ")
    (broken / "benchmark/more.json").write_text(json.dumps([spelled]), encoding="utf-8")
    assert f"is also in hpd/train.json as {TRAIN[0]!r}" in error_of_run()


def test_a_test_record_with_a_training_prompt_is_left_out_and_counted(broken, caplog):
    caplog.set_level("WARNING")
    first, *others = records(broken / "test.json")
    trained = records(broken / "train.json")[0]["prompt"]
    first["prompt"] = f"  {trained.upper()} "
    (broken / "test.json").write_text(json.dumps([first, *others]), encoding="utf-8")
    run(**arguments("hpd"))
    expected = f"trained_test_prompt: 1 (1 set aside), the first is hpd/test.json: record 0: prompt {first['prompt']!r} is"
    assert f"{expected} also in hpd/train.json as {trained!r} (record 0)" in caplog.text
    prompts = {pair.prompt for pair in read_pairs("test")}
    assert prompts == {record["prompt"] for record in others}


def test_a_prompt_whose_records_all_have_bad_images_is_still_not_evaluated_whatever_images_are_checked(
    broken, ingest_settings
):
    """So that the prompts to evaluate with are the same whether all images are checked or only some."""
    train = records(broken / "train.json")
    lost = train[0]["prompt"]
    names = {name for record in train if record["prompt"] == lost for name in record["file_path"]}
    (broken / "benchmark/more.json").write_text(json.dumps([lost, "a prompt of its own"]), encoding="utf-8")
    for checked in ("all", "used"):
        if checked == "all":
            repack(broken / "train.tar", lambda name, content: b"no image" if name in names else content)
        run(
            **arguments("hpd", train_rollout_source="online")
            | {
                "ingest": ingest_settings(
                    source="hpd", on_bad_record="quarantine", max_bad_share=0.5, check_images=checked
                )
            }
        )
        prompts = {kind: [one.text for one in read_prompts(kind)] for kind in ("train", "validation", "test")}
        assert "a prompt of its own" in prompts["test"]
        assert lost not in prompts["test"]
        assert (lost in prompts["train"] + prompts["validation"]) == (checked == "used")
        assert counts()["trained_benchmark_prompt"] == (1, 1)


def test_a_missing_source_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert error_of_run().startswith("hpd is missing: give a directory with train.json")


def quarantined():
    lines = artifacts.QUARANTINE.read_text(encoding="ascii").splitlines()
    return [(entry["file"], entry["record"], entry["rule"]) for entry in map(json.loads, lines)]


def counts():
    rules = artifacts.read_json(artifacts.VALIDATION)["records"]["rules"]
    return {name: (rule["found"], rule["set_aside"]) for name, rule in rules.items() if rule["found"]}


def test_bad_records_are_set_aside_with_file_record_and_rule_and_the_others_are_ingested(
    broken, ingest_settings
):
    train, test = records(broken / "train.json"), records(broken / "test.json")
    del train[0]["prompt"]
    train[1]["prompt"] = "\u200b\u2060"
    train[2]["file_path"][0] = "\x00.webp"
    train[3]["human_preference"] = [1, float("inf")]
    train[4]["prompt"] = "half \ud83d"
    text = json.dumps(train[:5])[:-1] + ', {"prompt": "a", "prompt": "b"}, ' + "[" * 100_000 + "]" * 100_000
    text += ', {"rank": ' + "1" * 5000 + "}, " + json.dumps(train[8:])[1:]
    (broken / "train.json").write_text(text, encoding="utf-8")
    test[0]["rank"] = [10**400, *test[0]["rank"][1:]]
    (broken / "test.json").write_text(json.dumps(test), encoding="utf-8")
    (broken / "benchmark/more.json").write_text(
        json.dumps([train[9]["prompt"], "a \x07 bell", 7, *(f"prompt {number}" for number in range(57))]),
        encoding="utf-8",
    )
    settings = ingest_settings(source="hpd", on_bad_record="quarantine", max_bad_share=0.05)
    run_with(settings)
    assert quarantined() == [
        *[
            ("hpd/train.json", record, rule)
            for record, rule in enumerate(
                [
                    "broken_record",
                    "empty_text",
                    "control_character",
                    "bad_number",
                    "half_surrogate",
                    "doubled_key",
                    "deep_nesting",
                    "bad_number",
                ]
            )
        ],
        ("hpd/test.json", 0, "bad_number"),
        ("hpd/benchmark/more.json", 0, "trained_benchmark_prompt"),
        ("hpd/benchmark/more.json", 1, "control_character"),
        ("hpd/benchmark/more.json", 2, "broken_record"),
    ]
    assert counts()["bad_number"] == (3, 3)
    assert sum(found for found, _ in counts().values()) == len(quarantined()) == 12
    checks = artifacts.read_json(artifacts.VALIDATION)["records"]
    assert checks["bad"] == 12
    assert checks["read"]["hpd/train.json"] == len(train)
    assert len(read_pairs("train")) == len(train) - 8


def test_too_many_bad_records_end_the_run_in_one_line(broken, ingest_settings):
    train = records(broken / "train.json")
    train[0]["prompt"] = train[1]["prompt"] = " "
    (broken / "train.json").write_text(json.dumps(train), encoding="utf-8")
    settings = ingest_settings(source="hpd", on_bad_record="quarantine", max_bad_share=0.001)
    with pytest.raises(
        DataError,
        match=r"^hpd/train\.json: 2 of \d+ records are bad \(empty_text 2\), and the share 0.001 of each file",
    ):
        run_with(settings)
    assert len(quarantined()) == 2
    assert not artifacts.VALIDATION.exists()


def test_a_broken_file_ends_the_run_in_quarantine_too(broken, ingest_settings):
    (broken / "test.json").write_text('[{"prompt": "a"}, {"prompt"]', encoding="utf-8")
    with pytest.raises(DataError, match=r"test\.json: record 1: broken JSON at line 1"):
        run_with(ingest_settings(source="hpd", on_bad_record="quarantine", max_bad_share=1.0))


def test_records_with_missing_and_unreadable_images_are_set_aside(broken, ingest_settings):
    contents = {"00000008.webp": None, "00000012.webp": b"no image"}
    repack(broken / "train.tar", contents.get)
    users = {
        name: [index for index, one in enumerate(records(broken / "train.json")) if name in one["file_path"]]
        for name in contents
    }
    run_with(ingest_settings(source="hpd", on_bad_record="quarantine", max_bad_share=0.05))
    missing, unreadable = users.values()
    unreadable = [record for record in unreadable if record not in missing]
    assert missing
    assert unreadable
    assert quarantined() == [("hpd/train.json", record, "missing_image") for record in missing] + [
        ("hpd/train.json", record, "unreadable_image") for record in unreadable
    ]
    used = {path for pair in read_pairs("train") for path in (pair.preferred, pair.rejected)}
    assert used.isdisjoint({f"train/{name}" for name in contents})
    assert len(read_pairs("train")) == len(records(broken / "train.json")) - len(missing) - len(unreadable)


def test_bad_benchmark_entries_end_the_run_however_many_records_are_good(broken, ingest_settings):
    entries = [f"prompt {number}" for number in range(8)]
    (broken / "benchmark/more.json").write_text(json.dumps([*entries, "", 7]), encoding="utf-8")
    share = 2 / len(records(broken / "train.json"))
    settings = ingest_settings(source="hpd", on_bad_record="quarantine", max_bad_share=share)
    with pytest.raises(
        DataError, match=r"^hpd/benchmark/more\.json: 2 of 10 records are bad \(broken_record 1, empty"
    ):
        run_with(settings)


def test_a_bad_image_among_the_few_that_a_run_uses_counts_against_these(broken):
    few = {"train_rollout_source": "online", "evaluate_real_images": 0, "check_reward_max_pairs": 1}
    settings = {"check_images": "used", "on_bad_record": "quarantine"}
    run(**arguments("hpd", settings, **few))
    used = {path.removeprefix("test/") for path in stored_paths()}
    users = [own for own in records(broken / "test.json") if used.intersection(own["image_path"])]
    bad = min(used)
    num_bad = sum(bad in own["image_path"] for own in users)
    assert num_bad / len(users) > 1.5 * num_bad / len(records(broken / "test.json"))
    repack(broken / "test.tar", lambda member, content: content[:200] if member == bad else content)
    share = (num_bad / len(users) + num_bad / len(records(broken / "test.json"))) / 2
    expected = (
        rf"^hpd/test\.json: {num_bad} of {len(users)} records with a checked image are bad \(unreadable_image"
    )
    with pytest.raises(DataError, match=expected):
        run(**arguments("hpd", settings | {"max_bad_share": share}, **few))


def flat(size):
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("size", "rule"),
    [((1, 1), "small_image"), ((10_000, 1), "small_image"), ((20, 161), "elongated_image")],
)
def test_images_that_are_too_small_or_too_long_end_the_run_or_are_counted(
    broken, ingest_settings, size, rule
):
    repack(broken / "test.tar", lambda name, content: flat(size) if name == "00000004.webp" else content)
    record = index_with(broken / "test.json", "image_path", "00000004.webp")
    expected = f"hpd/test.json: record {record}: image '00000004.webp' has {size[0]} x {size[1]} pixels"
    assert error_of_run().startswith(expected)
    run_with(ingest_settings(rules={rule: "warning"}, source="hpd"))
    assert counts() == {rule: (1, 0)}


def test_equal_images_under_two_names_and_in_both_splits_are_counted_or_end_the_run(
    broken, ingest_settings, caplog
):
    caplog.set_level("WARNING")
    copied = {}
    repack(broken / "train.tar", copied.setdefault)
    twin = copied["00000000.webp"]
    repack(broken / "train.tar", lambda name, content: twin if name == "00000008.webp" else content)
    repack(broken / "test.tar", lambda name, content: twin if name == "00000004.webp" else content)
    run_with(ingest_settings(source="hpd"))
    assert counts() == {"equal_images": (1, 0), "trained_test_image": (1, 0)}
    assert "image '00000008.webp' is equal to '00000000.webp' of the same split" in caplog.text
    with pytest.raises(
        DataError, match=r"^hpd/test.json: record \d+: image '00000004.webp' is equal to '00000000"
    ):
        run_with(ingest_settings(rules={"trained_test_image": "critical"}, source="hpd"))
