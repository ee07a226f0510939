import io
import json
import re
import shlex
import shutil
import tarfile
import time
from itertools import combinations
from pathlib import Path

import pytest
import typer

import flows.terminal
from flows.align import align
from flows.data import data
from flows.form import parse_patch
from srpo_core.cli.app import app
from srpo_core.cli.main import main  # noqa: F401  # registers the commands
from srpo_core.config import load_settings
from srpo_core.data.splits import held_out_prompts
from srpo_core.errors import ConfigError, DataError, StageError, StoreError
from srpo_core.workspace import data_versions
from srpo_core.workspace.data_remote import audit_remote
from srpo_core.workspace.data_settings import settings_to_note
from srpo_core.workspace.data_view import open_version
from srpo_core.workspace.git import git
from srpo_core.workspace.worktree import open_workspace

ROOT = Path(__file__).resolve().parents[2]
HPD = ROOT / "assets/tiny/hpd"


def counts_of_emoji():
    """Count what ingest makes of the tiny data by reading them without it."""
    train, test = (json.loads((HPD / f"{split}.json").read_text()) for split in ("train", "test"))
    styles = {
        path.stem: len(json.loads(path.read_text())) for path in sorted((HPD / "benchmark").glob("*.json"))
    }
    trained = len({one["prompt"] for one in train})
    share = load_settings(ROOT / "params.yaml").ingest.validation_share
    held_out = len(held_out_prompts({one["prompt"]: 0 for one in train}, share, 0))
    pairs = sum(a != b for one in test for a, b in combinations(one["rank"], 2))
    return {
        "prompts": {"test": sum(styles.values()), "train": trained - held_out, "validation": held_out},
        "styles": styles,
        "pairs": {"test": pairs, "train": len(train)},
    }


def published(server, tag):
    """Wait for the event of a version; Prefect sends events from a thread."""
    until = time.monotonic() + 60
    wanted = {"event": {"name": ["hpd.version.published"]}, "resource": {"id": [f"hpd.version.{tag}"]}}
    while not (found := server.call("/events/filter", {"filter": wanted})["events"]):
        assert time.monotonic() < until, "the event was not sent"
        time.sleep(0.2)
    return found[0]


@pytest.mark.pipeline
def test_a_data_version_is_tagged_and_pushed_and_can_be_used_from_the_remote(standin, prefect):
    tag = data(source=str(HPD), name="emoji")
    assert tag.startswith("data/emoji/")
    assert len(tag.rsplit("/", 1)[1]) == 12
    assert git(standin, "tag") == tag
    assert git(standin, "status", "--porcelain") == ""
    assert git(standin, "diff", "--name-only", "main", tag).split() == ["data/.gitignore", "data/emoji.dvc"]

    assert data(source=str(HPD), name="emoji") == tag
    assert git(standin, "tag") == tag
    page = standin / ".srpo/data" / f"{tag.removeprefix('data/').replace('/', '-')}.html"
    assert page.read_text().count("data:image/") == 24
    (artifact,) = prefect.call("/artifacts/latest/filter", {"artifacts": {"key": {"any_": ["data"]}}})
    stored = standin / "store/reports" / tag.replace("/", "-") / "data.html"
    assert f"Its page, with samples: `{stored}`" in artifact["data"]
    assert stored.read_bytes() == page.read_bytes()
    assert "| records | train | 480 |" in artifact["data"]
    assert (
        f"Next: `srpo align --revision {tag} --set ingest.source=data/emoji --set ingest.format=hpdv2`"
        in artifact["data"]
    )
    settings, findings = data_versions.noted(standin, tag)
    assert settings.keys() == {"format", "columns", "test_share", "rules"}
    assert findings == {}
    event = published(prefect, tag)
    assert event["resource"] == {
        "prefect.resource.id": f"hpd.version.{tag}",
        "prefect.resource.name": tag,
        "hpd.name": "emoji",
    }
    assert event["payload"] == {
        "tag": tag,
        "rev": git(standin, "rev-parse", tag),
        "name": "emoji",
        "counts": counts_of_emoji(),
        "patch": {"ingest": {"source": "data/emoji", "format": "hpdv2"}},
    }

    shutil.rmtree(standin / ".dvc/cache")
    result = align(revision=tag, patch=parse_patch({"ingest": {"source": "data/emoji"}}), publish=False)
    seen = json.loads((result.workspace / "runs/ingest/numbers.json").read_text())
    assert seen == [0, ["benchmark", "test.json", "test.tar", "train.json", "train.tar"]]


def command_of_the_page():
    """Return the words that docs/data.md gives for HPDv2, after `srpo`."""
    page = (ROOT / "docs/data.md").read_text(encoding="utf-8")
    block = re.search(r"^## HPDv2\n+```bash\n(.*?)```", page, re.DOTALL | re.MULTILINE)
    assert block is not None
    (line,) = [line for line in block[1].splitlines() if line.startswith("srpo data HPDv2 ")]
    return shlex.split(line, comments=True)[1:]


def as_on_the_hub(target, images):
    """Write the tiny data as the hub has HPDv2, with five times the prompts: so a thousandth of train.json allows two.

    images: further ones of train.json, by name.
    """
    samples = target / "benchmark/benchmark_imgs/some_model/food"
    samples.mkdir(parents=True)
    (samples / "00000.jpg").write_bytes(b"an image that nothing reads")
    for name in (".gitattributes", "HPDv2.py", "README.md"):
        (target / name).write_text("of the hub\n")
    for split in ("train", "test"):
        known = json.loads((HPD / f"{split}.json").read_text())
        copies = ("", *(f", number {number}" for number in range(2, 6))) if split == "train" else ("",)
        records = [
            one | {"prompt": one["prompt"] + copy, "user_hash": "somebody"}
            for copy in copies
            for one in known
        ]
        (target / f"{split}.json").write_text(json.dumps(records))
        with (
            tarfile.open(HPD / f"{split}.tar") as plain,
            tarfile.open(target / f"{split}.tar.gz", "w:gz", compresslevel=1) as packed,
        ):
            of_tiny = {member.name: plain.extractfile(member).read() for member in plain}
            for name, content in {**of_tiny, **(images if split == "train" else {})}.items():
                member = tarfile.TarInfo(f"{split}/{name}")
                member.size = len(content)
                packed.addfile(member, io.BytesIO(content))
    for path in (HPD / "benchmark").glob("*.json"):
        shutil.copy(path, target / "benchmark")
    trained = json.loads((target / "train.json").read_text())[0]["prompt"]
    (target / "benchmark/drawbench.json").write_text(
        json.dumps([trained])
    )  # no style: it would be a bad record
    return target


@pytest.mark.pipeline
def test_hpdv2_as_the_hub_has_it_becomes_a_version_by_the_command_of_the_page_and_only_by_setting_bad_records_aside(
    standin, prefect, monkeypatch, capsys
):
    """With other settings its first bad record is named, and nothing is tagged or pushed."""
    source = as_on_the_hub(standin / "HPDv2", {"00168743.jpg": b"\xff\xd8\xff\xe0 cut in the middle"})
    pairs = json.loads((source / "train.json").read_text())
    pairs[3]["human_preference"] = [1, 1]
    pairs[7]["file_path"][1] = "00168743.jpg"
    (source / "train.json").write_text(json.dumps(pairs))
    with pytest.raises(StageError, match=r"train.json.*record 3.*human_preference.*on_bad_record=quarantine"):
        data(source=str(source))
    assert git(standin, "tag") == ""
    assert not (standin / ".srpo/dvc-remote").exists()
    listed = standin / ".srpo/data/hpd-quarantine.jsonl"
    assert [json.loads(line)["record"] for line in listed.read_text().splitlines()] == [3]

    monkeypatch.setattr(flows.terminal, "prepare_terminal", lambda: None)  # the server of the tests is used
    capsys.readouterr()
    typer.main.get_command(app).main(command_of_the_page(), standalone_mode=False)
    tag = git(standin, "tag")
    assert re.fullmatch(r"data/hpd/[0-9a-f]{12}", tag)
    printed = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert ["tag", tag] in printed
    (following,) = [rest for word, rest in filter(lambda line: line[1:], printed) if word == "next"]
    assert following.startswith(f"srpo align --revision {tag} --set ingest.source=data/hpd ")
    for setting in ("on_bad_record=quarantine", "max_bad_share=0.001", "format=hpdv2"):
        assert f" --set ingest.{setting}" in following
    settings, findings = data_versions.noted(standin, tag)
    assert (settings["on_bad_record"], settings["max_bad_share"]) == ("quarantine", 0.001)
    assert {rule: one["set_aside"] for rule, one in findings.items()} == {
        "broken_record": 1,
        "unreadable_image": 1,
    }
    entries = [json.loads(line) for line in listed.read_text().splitlines()]
    assert sorted((one["record"], one["rule"]) for one in entries) == [
        (3, "broken_record"),
        (7, "unreadable_image"),
    ]
    with open_version(standin, tag) as version:
        assert sorted(version.files) == [
            *(f"benchmark/{name}.json" for name in ("drawbench", "food", "nature", "objects")),
            *("test.json", "test.tar.gz", "train.json", "train.tar.gz"),
        ]
        for name in ("train.tar.gz", "train.json"):
            assert (version.path / name).read_bytes() == (source / name).read_bytes()


def test_the_same_files_are_another_version_if_other_records_are_read_of_them_and_only_then(standin):
    """DVC's part, data/words.dvc, is written by the test: it is the same each time."""
    ingest = load_settings(standin / "params.yaml").ingest

    def add(findings, **changes):
        noted = settings_to_note(ingest, {"format": "prompts", **changes})
        with open_workspace(standin, revision="HEAD") as workspace:
            (workspace.path / "data").mkdir()
            (workspace.path / "data/.gitignore").write_text("/words\n")
            (workspace.path / "data/words.dvc").write_text(
                "outs:\n- md5: 0123456789abcdef0123456789abcdef.dir\n  path: words\n"
            )
            tag = data_versions.version_tag(workspace, "data/words/0123456789ab", noted)
            data_versions.commit(workspace, "words", tag, noted, findings)
        return tag

    first = add({"empty_text": 1})
    assert first == "data/words/0123456789ab"
    assert add({}, on_bad_record="quarantine", max_bad_share=0.5) == first
    other = add({"long_prompt": 2}, columns={"prompt": "other"})
    assert add({}, columns={"prompt": "other"}) == other
    assert sorted(git(standin, "tag").split()) == sorted([first, other])
    # a run's record names the version that its settings read
    git(standin, "tag", "data/words/mine", "HEAD")

    def version_read(md5="0123456789abcdef0123456789abcdef.dir", **changes):
        read = ingest.model_dump(mode="json") | {"format": "prompts"} | changes
        return data_versions.version_read(standin, "data/words", md5, read)

    assert version_read() == first
    assert version_read(columns={"prompt": "other"}) == other
    assert version_read(columns={"prompt": "third"}) is None
    assert version_read(md5="f" * 32 + ".dir") is None
    assert git(standin, "diff", "--name-only", first, other) == ""
    settings, findings = data_versions.noted(standin, other)
    assert (settings["columns"], findings) == ({"prompt": "other"}, {"long_prompt": 2})
    settings, findings = data_versions.noted(standin, first)
    assert (settings["columns"], findings) == ({}, {"empty_text": 1})


def test_the_tar_of_an_image_directory_does_not_depend_on_order_and_times(tmp_path):
    for number, names in enumerate((["b", "a"], ["a", "b"])):
        source = tmp_path / f"source{number}"
        shutil.copytree(HPD / "benchmark", source / "benchmark")
        for split in ("train", "test"):
            (source / f"{split}.json").write_text("[]")
            (source / split).mkdir()
            for name in names:
                (source / split / f"{name}.png").write_bytes(name.encode() * 700)
        data_versions.collect(source, tmp_path / f"target{number}", "hpdv2")
    first, second = ((tmp_path / f"target{number}/train.tar").read_bytes() for number in (0, 1))
    assert first == second
    with tarfile.open(tmp_path / "target0/train.tar") as tar:
        assert tar.getnames() == ["a.png", "b.png"]
        member = tar.extractfile("b.png")
        assert member is not None
        assert member.read() == b"b" * 700


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (shutil.rmtree, r"source is missing: give a directory with train.json"),
        (lambda source: (source / "test.json").unlink(), r"test.json is missing"),
        (lambda source: (source / "train.tar").unlink(), r"images of 'train' must be in exactly one"),
        (lambda source: (source / "train").mkdir(), r"exactly one .* found .*train and .*train.tar"),
    ],
)
def test_a_source_with_another_layout_gives_a_one_line_error(tmp_path, change, line):
    source = shutil.copytree(HPD, tmp_path / "source")
    change(source)
    with pytest.raises(DataError, match=line):
        data_versions.collect(source, tmp_path / "target", "hpdv2")


@pytest.mark.parametrize("name", ["", "../up", "a/b", "-", "ü"])
def test_an_invalid_name_of_a_data_set_is_refused(name):
    with pytest.raises(ConfigError, match="use letters, digits"):
        data_versions.require_name(name)


@pytest.mark.pipeline
def test_files_missing_in_the_remote_are_found_and_pushed_again(standin):
    with open_workspace(standin, revision="HEAD") as workspace:
        data_versions.collect(HPD, workspace.path / "data/emoji", "hpdv2")
        data_versions.track(workspace, "emoji")
        data_versions.push(workspace, "emoji")
        assert audit_remote(workspace, "emoji").damaged == ()
        remote = standin / ".srpo/dvc-remote"
        objects = [path for path in remote.rglob("*") if path.is_file() and path.suffix != ".dir"]
        missing, cut_off = sorted(objects)[:2]
        missing.unlink()
        cut_off.chmod(0o644)
        cut_off.write_bytes(b"half")
        lost = sorted(path.parent.name + path.name for path in (missing, cut_off))
        assert audit_remote(workspace, "emoji").damaged == tuple(lost)
        assert data_versions.push(workspace, "emoji").damaged == ()
        assert audit_remote(workspace, "emoji").damaged == ()

        missing.unlink()
        missing.mkdir()
        with pytest.raises(StoreError, match=r"data/emoji"):
            data_versions.push(workspace, "emoji")
