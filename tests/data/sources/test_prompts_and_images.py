"""Sources without pairs: prompts alone, and images with captions."""

import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from coloured_images import PREFERRED, encode, is_green

from srpo_core import artifacts
from srpo_core.data.decoding import FORMATS, IMAGE_SUFFIXES
from srpo_core.data.images import TarImages
from srpo_core.data.tables import read_images, read_pairs, read_prompts, read_real_images
from srpo_core.errors import ConfigError, DataError
from srpo_core.preflight.consistency import require_consistent
from srpo_core.scorers.common_patterns import outlines
from srpo_core.scorers.metrics import METRICS
from srpo_core.scorers.metrics.metric import Compared
from srpo_core.stages.embed import preferred_images
from srpo_core.stages.evaluate import metric_context, require_known_answers_of_scorers

ASSETS = Path(__file__).resolve().parents[3] / "assets"
PROMPTS = [f'a "thing", number {number}' for number in range(40)]


def write_prompts(path, texts):
    match path.suffix:
        case ".txt":
            content = "\ufeff" + "\r\n".join([*texts[:20], "", "  ", *texts[20:]]) + "\n"
        case ".json":
            content = json.dumps(texts)
        case ".jsonl":
            content = "\n".join(json.dumps({"prompt": text, "seed": 1}) for text in texts)
        case ".csv":
            lines = ['"{}",1'.format(text.replace('"', '""')) for text in texts]
            content = "\n".join(["Prompt,seed", *lines])
        case _:
            pq.write_table(pa.table({"caption": texts, "seed": [1] * len(texts)}), path)
            return
    path.write_text(content, encoding="utf-8", newline="")


@pytest.mark.parametrize("suffix", ["txt", "json", "jsonl", "csv", "parquet"])
def test_a_file_of_prompts_is_divided_into_training_validation_and_test(tmp_path, ingest, suffix):
    path = tmp_path / f"prompts.{suffix}"
    write_prompts(path, PROMPTS)
    ingest(path, "prompts", test_share=0.25)
    splits = {split: [one.text for one in read_prompts(split)] for split in ("train", "validation", "test")}
    assert all(splits.values())
    assert sorted(text for texts in splits.values() for text in texts) == sorted(PROMPTS)
    assert read_pairs("train") == []
    assert read_pairs("test") == []
    assert sorted(artifacts.read_json(artifacts.VALIDATION)) >= ["prompts"]


def test_a_directory_with_a_file_for_each_split_keeps_them(tmp_path, ingest):
    (tmp_path / "own").mkdir()
    write_prompts(tmp_path / "own/train.txt", PROMPTS[:30])
    write_prompts(tmp_path / "own/test.txt", [*PROMPTS[30:], PROMPTS[0].upper()])
    ingest(tmp_path / "own", "prompts")
    assert [one.text for one in read_prompts("test")] == PROMPTS[30:]


def write_folder(directory, count, *, first=0, caption="caption"):
    directory.mkdir(parents=True)
    for number in range(first, first + count):
        (directory / f"img.v{number}.jpg").write_bytes(encode(number, PREFERRED))
        (directory / f"img.v{number}.txt").write_text(f"\ufeff{caption} {number}\n", encoding="utf-8")


@pytest.mark.parametrize("versioned", [False, True])
def test_a_caption_is_beside_its_image_and_offline_training_finds_the_image(tmp_path, ingest, versioned):
    write_folder(tmp_path / "own/photos", 30)
    ingest("own", "images", versioned=versioned, test_share=0.2)
    texts = [one.text for split in ("train", "validation", "test") for one in read_prompts(split)]
    assert sorted(texts) == sorted(f"caption {number}" for number in range(30))
    trained = [one.text for one in read_prompts("train")]
    paths = preferred_images(trained)
    assert len(set(paths)) == len(trained)
    assert all(is_green(image) for image in read_images(paths).values())
    assert read_real_images("train")["caption 3"].endswith("/img.v3.jpg")
    assert read_real_images("test").keys() == {one.text for one in read_prompts("test")}
    with pytest.raises(
        DataError, match=r"has no preferred image of 'of nothing' \(1 of 2 prompts have none\)"
    ):
        preferred_images([trained[0], "of nothing"])


def test_the_evaluation_compares_with_images_that_have_captions_and_asks_its_scorers_about_others(
    tmp_path, ingest, tiny, caplog
):
    caplog.set_level("INFO")
    (tmp_path / "assets").symlink_to(ASSETS)  # the paths of the scorers
    write_folder(tmp_path / "own", 30)
    ingest("own", "images", versioned=False, test_share=0.3)
    evaluate = tiny.evaluate.model_copy(update={"real_images": 4})
    context = metric_context(list(tiny.rewards), tiny.judge, tiny.control_words, evaluate)
    for images in (context.real, context.training):
        assert [tuple(image.shape) for image in images()] == [(1, 3, 32, 48)] * 4
    require_known_answers_of_scorers(context, torch.device("cpu"))
    assert "judge: answered questions with known answers" in caplog.text


def test_prompts_alone_give_the_metrics_no_real_images(tmp_path, ingest, tiny):
    write_prompts(tmp_path / "prompts.txt", PROMPTS)
    ingest("prompts.txt", "prompts", versioned=False)
    context = metric_context(list(tiny.rewards), tiny.judge, tiny.control_words, tiny.evaluate)
    own = outlines(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    base = outlines(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)))
    compared = Compared(own, base, torch.arange(2))
    assert METRICS["copied"].beside_base(compared, context).tolist() == [0, 0]


@pytest.mark.parametrize("versioned", [False, True])
def test_other_files_beside_images_and_captions_are_no_tables(tmp_path, ingest, versioned):
    write_folder(tmp_path / "own", 20)
    (tmp_path / "own/meta.json").write_text('{"resolution": 512}')
    (tmp_path / "own/IMG.JPG").write_bytes(encode(99, PREFERRED))
    (tmp_path / "own/IMG.txt").write_text("from a camera")
    ingest("own", "images", versioned=versioned)
    texts = [one.text for split in ("train", "validation", "test") for one in read_prompts(split)]
    assert len(texts) == 21
    assert "from a camera" in texts


def test_directories_named_after_splits_are_the_splits(tmp_path, ingest):
    write_folder(tmp_path / "own/train", 8)
    write_folder(tmp_path / "own/test", 3, first=50)
    ingest(tmp_path / "own", "images")
    assert [one.text for one in read_prompts("test")] == ["caption 50", "caption 51", "caption 52"]
    with tarfile.open(tmp_path / "data/own/images.tar") as packed:
        assert packed.getnames()[:2] == ["test/img.v50.jpg", "test/img.v50.txt"]


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_an_image_folder_of_the_hub_has_its_captions_in_a_table(tmp_path, ingest, name):
    for split, count in (("train", 6), ("test", 2)):
        directory = tmp_path / "own" / split
        directory.mkdir(parents=True)
        rows = [{"file_name": f"{number}.png", "text": f"{split} {number}"} for number in range(count)]
        for number in range(count):
            (directory / f"{number}.png").write_bytes(encode(number + len(split), PREFERRED, "PNG"))
        if name.endswith("csv"):
            lines = ["file_name,text", *(",".join(row.values()) for row in rows)]
        else:
            lines = [json.dumps(row) for row in rows]
        (directory / name).write_text("\n".join(lines))
    ingest(tmp_path / "own", "images")
    assert read_real_images("test") == {"test 0": "test/test/0.png", "test 1": "test/test/1.png"}
    assert len(read_images(read_real_images("train").values())) == 6


def test_a_table_of_the_library_datasets_has_images_and_captions(tmp_path, ingest):
    rows = [
        {"image": {"bytes": encode(n, PREFERRED), "path": None}, "text": f"caption {n}"} for n in range(30)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    ingest(tmp_path / "train.parquet", "images")
    assert all(is_green(image) for image in read_images(read_real_images("train").values()).values())


def test_an_image_without_a_caption_is_named(tmp_path, ingest):
    write_folder(tmp_path / "own", 3)
    (tmp_path / "own/img.v1.txt").unlink()
    with pytest.raises(DataError, match=r"record 1: image 'img.v1.jpg' has no caption .txt beside it"):
        ingest("own", "images", versioned=False)


def photos(directory, names, start=0):
    for number, name in enumerate(names, start):
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(number, PREFERRED))
        path.with_suffix(".txt").write_text(f"caption of {name}")


def texts_read():
    return sorted(
        one.text.removeprefix("caption of ")
        for split in ("train", "validation", "test")
        for one in read_prompts(split)
    )


@pytest.mark.parametrize("versioned", [False, True])
def test_the_name_of_a_photo_is_no_split(tmp_path, ingest, versioned):
    names = [f"steam-train-{n}.jpg" for n in range(3)] + ["crash-test.jpg", "test.jpg", "x.val.jpg"]
    names += [f"my-train/{n}.jpg" for n in range(3)] + [f"train/{n}.jpg" for n in range(3)]
    names += [f"p{n}.jpg" for n in range(20)]
    photos(tmp_path / "own", names)
    ingest("own", "images", versioned=versioned, test_share=0.5)
    assert texts_read() == sorted(names)


def test_images_outside_of_the_directories_of_splits_are_counted(tmp_path, ingest, caplog):
    names = [f"{split}/{n}.jpg" for split in ("train", "test", "validation") for n in range(4)]
    photos(tmp_path / "own", [*names, "a.jpg", "sub/test-b.jpg"])
    ingest("own", "images", versioned=False)
    assert texts_read() == sorted(names[:8])
    assert "own: 2 images outside of the directories of splits are not read" in caplog.text
    assert "own: 4 images in directories validation are not read" in caplog.text


def test_a_directory_of_test_alone_is_divided(tmp_path, ingest):
    names = [f"test/{n}.jpg" for n in range(20)]
    photos(tmp_path / "own", names)
    ingest("own", "images", versioned=False, test_share=0.5)
    assert texts_read() == sorted(names)


def packed(directory, names, *, prefix="./", kind=tarfile.GNU_FORMAT):
    """Write images.tar as `tar -cf images.tar .` in the directory of the photos does."""
    photos(directory / "loose", names)
    with tarfile.open(directory / "images.tar", "w", format=kind) as tar:
        for path in sorted((directory / "loose").rglob("*")):
            if path.is_file():
                tar.add(path, prefix + path.relative_to(directory / "loose").as_posix())
        for name in ("._p1.txt", "__MACOSX/._p1.jpg", "sub/._p1.txt"):
            tar.addfile(member := tarfile.TarInfo(prefix + name), io.BytesIO())
            assert member.size == 0
        member = tarfile.TarInfo(prefix + "._p2.txt")
        member.size = 2
        tar.addfile(member, io.BytesIO(b"\xff\xfe"))
    shutil.rmtree(directory / "loose")


@pytest.mark.parametrize("prefix", ["", "./"])
@pytest.mark.parametrize("versioned", [False, True])
def test_an_archive_that_the_user_packed_is_read(tmp_path, ingest, versioned, prefix):
    names = [f"p{n}.jpg" for n in range(12)] + [f"sub/p{n}.jpg" for n in range(4)]
    packed(tmp_path / "own", names, prefix=prefix)
    ingest("own", "images", versioned=versioned, test_share=0.5)
    assert texts_read() == sorted(names)


def test_links_in_an_archive_are_the_files_that_they_point_to(tmp_path, ingest):
    names = [f"p{n}.jpg" for n in range(12)]
    photos(tmp_path / "own", names)
    os.link(tmp_path / "own/p0.txt", tmp_path / "own/q0.txt")
    (tmp_path / "own/q0.jpg").symlink_to("p0.jpg")
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        tar.add(tmp_path / "own", ".")
    shutil.rmtree(tmp_path / "own")
    (tmp_path / "own").mkdir()
    (tmp_path / "images.tar").rename(tmp_path / "own/images.tar")
    ingest("own", "images", versioned=False, test_share=0.5)
    assert texts_read() == sorted(names)  # two of the 13 images have the same caption
    assert artifacts.read_json(artifacts.VALIDATION)["records"]["read"] == {"own/images.tar": 13}


@pytest.mark.parametrize("suffix", ["jpg", "JPG", "jfif", "jp2", "ppm", "apng", "avif", ""])
@pytest.mark.parametrize("versioned", [False, True])
def test_images_of_every_format_have_captions(tmp_path, ingest, suffix, versioned):
    names = [f"p{n}.{suffix}".removesuffix(".") for n in range(10)]
    photos(tmp_path / "own", names)
    ingest("own", "images", versioned=versioned, test_share=0.5)
    assert texts_read() == sorted(names)


def test_the_suffixes_are_those_of_the_formats():
    from PIL import Image

    Image.init()
    known = {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}
    assert known | {".mpo"} == IMAGE_SUFFIXES  # a photo with a depth map is read as JPEG


def test_captions_and_files_without_an_image_are_reported(tmp_path, ingest, caplog):
    photos(tmp_path / "own", [f"p{n}.jpg" for n in range(10)])
    (tmp_path / "own/README.txt").write_text("about the photos")
    (tmp_path / "own/raw.heic").write_bytes(b"ftypheic")
    (tmp_path / "own/raw.txt").write_text("a photo of another format")
    (tmp_path / "own/p3.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"record 3: caption 'p3.txt' is not UTF-8 at byte 3"):
        ingest("own", "images", versioned=False)
    ingest("own", "images", versioned=False, on_bad_record="quarantine", max_bad_share=0.3)
    details = [json.loads(line)["detail"] for line in artifacts.QUARANTINE.read_text().splitlines()]
    assert details == [
        "caption 'p3.txt' is not UTF-8 at byte 3",
        "caption 'raw.txt' has no image beside it that is read",
    ]
    assert "own: 2 files are neither images nor captions and are not read, first README.txt" in caplog.text
    assert len(texts_read()) == 9


def damaged_headers(whole):
    """Yield an archive with alterations of its first two headers."""
    for place in (*range(0, 512, 7), *range(512, 640, 3)):
        for byte in (b"\x00", b"\xff", b"9", b"-", b"="):
            yield whole[:place] + byte + whole[place + 1 :]


def test_a_damaged_archive_of_images_gives_one_line(tmp_path, ingest):
    packed(tmp_path / "own", ["p0.jpg", "p1.jpg", "p2.jpg"])
    path = tmp_path / "own/images.tar"
    whole = path.read_bytes()
    second = whole.index(b"./p0.txt")
    for content in (
        b"no archive at all" * 100,
        b"\0" * 100,
        whole[:second],  # between two members
        whole[: second + 700],  # in the text
        whole[: second + 300],  # in its header
        whole[: second + 148] + b"9" + whole[second + 149 :],  # the checksum
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"^own/images.tar: not a readable tar archive: [^\n]+$"):
            ingest("own", "images", versioned=False)
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"^[^\n]+$"):
        ingest("own", "images", versioned=False)


def test_no_alteration_of_a_header_ends_in_a_trace(tmp_path):
    """The extended headers have the keys that tarfile reads as numbers."""
    member = tarfile.TarInfo("a.jpg")
    member.pax_headers = {
        "GNU.sparse.size": "12",
        "GNU.sparse.map": "0,1",
        "GNU.sparse.offset": "0",
        "GNU.sparse.numbytes": "1",
        "size": "3",
    }
    member.size = 3
    path = tmp_path / "images.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(member, io.BytesIO(b"abc"))
    whole = path.read_bytes().rstrip(b"\0")
    whole += b"\0" * (-len(whole) % 512 + 1024)
    refused = 0
    for content in damaged_headers(whole):
        path.write_bytes(content)
        with path.open("rb") as file:
            try:
                TarImages(path, file, "")
            except DataError as error:
                refused += "\n" not in str(error)
    assert refused > 100


def test_a_directory_without_an_image_is_named(tmp_path, ingest):
    (tmp_path / "own").mkdir()
    for name in (None, "a.txt"):
        if name:
            (tmp_path / "own" / name).write_text("alone")
        with pytest.raises(DataError, match=r"^own: has no image with a caption: give x.txt beside x.jpg"):
            ingest("own", "images", versioned=False)


def test_images_beside_an_archive_are_refused_and_nothing_is_overwritten(tmp_path, ingest):
    packed(tmp_path / "own", ["p0.jpg", "p1.jpg"])
    photos(tmp_path / "own", ["p7.jpg"])
    for versioned in (False, True):
        with pytest.raises(
            DataError, match=r"^own: has . images.* beside images.tar, first p7.jpg: pack all"
        ):
            ingest("own", "images", versioned=versioned)


def settings_for(tiny, format_name, **changes):
    ingest = tiny.ingest.model_copy(update={"format": format_name})
    check = tiny.check_reward.model_copy(update={"max_pairs": None})
    evaluate = tiny.evaluate.model_copy(
        update={"metrics": [name for name in tiny.evaluate.metrics if name != "kid"]}
    )
    rules = {name: rule for name, rule in tiny.gate.rules.items() if rule.metric != "kid"}
    gate = tiny.gate.model_copy(update={"rules": rules})
    new = {"ingest": ingest, "check_reward": check, "evaluate": evaluate, "gate": gate, **changes}
    return tiny.model_copy(update=new)


def test_what_a_run_needs_of_the_data_is_checked_before_it(tiny):
    require_consistent(settings_for(tiny, "prompts"))
    require_consistent(settings_for(tiny, "images", evaluate=tiny.evaluate, gate=tiny.gate))
    offline = tiny.train.model_copy(
        update={"rollout": tiny.train.rollout.model_copy(update={"source": "offline"})}
    )
    require_consistent(settings_for(tiny, "images", train=offline))
    for settings, line in (
        (
            settings_for(tiny, "prompts", check_reward=tiny.check_reward),
            r"which check_reward needs: set check_reward.max_pairs",
        ),
        (
            settings_for(tiny, "images", check_reward=tiny.check_reward),
            r"which check_reward needs: set check_reward.max_pairs",
        ),
        *(
            (
                settings_for(tiny, name, evaluate=tiny.evaluate, gate=tiny.gate),
                rf"check_reward.max_pairs is null, but ingest.format {name} has pairs .* --set check_reward.max_pairs=400$",
            )
            for name in ("hpdv2", "pairs")
        ),
        (settings_for(tiny, "prompts", train=offline), r"train.rollout.source offline starts from real ones"),
        (settings_for(tiny, "prompts", evaluate=tiny.evaluate, gate=tiny.gate), r"evaluate.metrics has kid"),
    ):
        with pytest.raises(ConfigError, match=line):
            require_consistent(settings)


def test_columns_are_refused_for_a_format_without_tables(tiny):
    ingest = tiny.ingest.model_copy(update={"columns": {"prompt": "q"}})
    with pytest.raises(ConfigError, match=r"ingest.columns is for tables"):
        require_consistent(tiny.model_copy(update={"ingest": ingest}))
