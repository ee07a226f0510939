import json
from collections import Counter

import pyarrow.parquet as pq
import pytest

from srpo_core.data.hpd import read_benchmark, read_choices
from srpo_core.prompts import normal_form


@pytest.fixture(scope="module")
def recipe(tiny):
    return json.loads((tiny / "recipe/subjects.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def made(tiny, make_hpd, tmp_path_factory):
    """Build the set from the subjects of the recipe."""
    target = tmp_path_factory.mktemp("hpd")
    make_hpd.make(target, tiny / "recipe/subjects.json")
    return target


@pytest.fixture
def subjects_file(tmp_path):
    def write(train, held_out):
        path = tmp_path / "subjects.json"
        path.write_text(json.dumps({"train": train, "eval": held_out}))
        return path

    return write


def files(directory):
    return {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*.*")}


def test_the_script_reproduces_the_shipped_set(tiny, make_hpd, tmp_path):
    make_hpd.make(tmp_path)
    assert files(tmp_path) == files(tiny / "hpd")


def test_every_subject_of_the_recipe_is_preferred_once_in_each_style(made, recipe, findings):
    for split, subjects in (("train", recipe["train"]), ("test", recipe["eval"])):
        choices = list(read_choices(made, split, findings))
        assert Counter(choice.prompt for choice in choices) == dict.fromkeys(subjects, 4)
        pairs = [pair for choice in choices for pair in choice.pairs()]
        assert Counter(better for better, _ in pairs) == Counter(worse for _, worse in pairs)


def test_the_benchmarks_contain_each_evaluation_subject_once_in_its_group(tiny, made, recipe, findings):
    table = pq.read_table(tiny / "data/emoji4.parquet", columns=["name", "group"]).to_pylist()
    groups = {row["name"]: row["group"] for row in table}
    prompts = list(read_benchmark(made, findings))
    trained = {normal_form(name) for name in recipe["train"]}
    assert trained.isdisjoint(normal_form(prompt.prompt) for prompt in prompts)
    assert sorted(prompt.prompt for prompt in prompts) == sorted(recipe["eval"])
    of_list = {
        name: {groups[entry.prompt] for entry in prompts if entry.style == name}
        for name in ("nature", "food", "objects")
    }
    assert of_list["nature"] == {"Animals & Nature"}
    assert of_list["food"] == {"Food & Drink"}
    assert of_list["objects"] == {"Activities", "Objects", "Travel & Places"}


def test_a_benchmark_without_subjects_is_removed_even_if_an_earlier_run_wrote_it(
    make_hpd, subjects_file, tmp_path
):
    target = tmp_path / "set"
    make_hpd.make(target, subjects_file(["lion", "zebra"], ["rocket", "owl", "frog"]))
    make_hpd.make(target, subjects_file(["lion", "zebra"], ["penguin", "owl", "frog"]))
    assert [path.name for path in (target / "benchmark").iterdir()] == ["nature.json"]


@pytest.mark.parametrize(
    ("train", "held_out", "line"),
    [
        (["lion"], ["a lion tamer"], "there is no picture of 'a lion tamer'"),
        (["lion", "owl"], ["lion"], "'lion' stands there 2 times, train and eval must be disjoint"),
        (["lion"], ["grinning face"], "'grinning face': no benchmark takes the group 'Smileys & Emotion'"),
        (["lion"], None, 'must be JSON with the lists "train" and "eval"'),
    ],
)
def test_invalid_subjects_give_a_one_line_error_before_a_file_is_written(
    make_hpd, subjects_file, tmp_path, train, held_out, line
):
    with pytest.raises(SystemExit) as caught:
        make_hpd.make(tmp_path / "set", subjects_file(train, held_out))
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "set").exists()
