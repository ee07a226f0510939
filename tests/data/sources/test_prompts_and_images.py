"""Sources without pairs: prompts alone, and images with captions."""

import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from coloured_images import PREFERRED, encode, is_green

from srpo_core import artifacts
from srpo_core.data.tables import has_pairs, read_images, read_pairs, read_prompts, read_real_images
from srpo_core.errors import ConfigError, DataError
from srpo_core.preflight.consistency import require_consistent
from srpo_core.scorers.common_patterns import outlines
from srpo_core.scorers.metrics import METRICS
from srpo_core.scorers.metrics.metric import Compared
from srpo_core.stages.embed import preferred_images
from srpo_core.stages.evaluate import metric_context, require_known_answers_of_scorers

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
    assert not has_pairs("test")
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


def test_the_evaluation_compares_with_images_that_have_captions_and_asks_no_questions_about_pairs(
    tmp_path, ingest, tiny, caplog
):
    write_folder(tmp_path / "own", 30)
    ingest("own", "images", versioned=False, test_share=0.3)
    evaluate = tiny.evaluate.model_copy(update={"real_images": 4})
    context = metric_context(list(tiny.rewards), tiny.judge, tiny.control_words, evaluate)
    for images in (context.real, context.training):
        assert [tuple(image.shape) for image in images()] == [(1, 3, 32, 48)] * 4
    require_known_answers_of_scorers(context, torch.device("cpu"))
    assert "because the data have no pairs" in caplog.text


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
        (settings_for(tiny, "prompts", train=offline), r"train.rollout.source offline starts from real ones"),
        (settings_for(tiny, "prompts", evaluate=tiny.evaluate, gate=tiny.gate), r"evaluate.metrics has kid"),
    ):
        with pytest.raises(ConfigError, match=line):
            require_consistent(settings)


def test_columns_are_refused_for_a_format_without_tables(tiny):
    ingest = tiny.ingest.model_copy(update={"columns": {"prompt": "q"}})
    with pytest.raises(ConfigError, match=r"ingest.columns is for tables"):
        require_consistent(tiny.model_copy(update={"ingest": ingest}))
