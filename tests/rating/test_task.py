"""A task: its items, its names, its files."""

import json
from collections import Counter

import pytest
from rating_tasks import PROMPTS, STYLES, make_plan, make_task

from srpo_core.errors import ArtifactError, ConfigError, DataError
from srpo_core.rating.power import plan_items
from srpo_core.rating.task import NOISE, Choice, find_task, plan_contents, read_task, write_task


def plan(protocol="paired", *, models=("new", "base"), prompts=PROMPTS, styles=STYLES, samples=2, **size):
    choice = Choice(prompts, styles, samples)
    return plan_contents(
        make_plan(protocol, **size), choice, dict.fromkeys(models, "digest"), candidate=models[0], seed=0
    )


def test_a_pair_shows_the_same_prompt_and_sample_of_both_models():
    contents = plan(prompts=PROMPTS, samples=2)
    for item in contents.items:
        if item.kind != "check":
            assert [one.model for one in item.shown] == ["new", "base"] == [item.first, item.second]
            assert {(one.prompt, one.sample) for one in item.shown} == {(item.prompt, item.sample)}


def test_prompts_are_used_once_before_any_is_used_twice_and_styles_in_proportion():
    size = {"repeats": 0, "checks": 0}
    contents = make_task(**size | {"prompts": 8}).planned
    assert len({item.prompt for item in contents.items}) == 8
    assert Counter(contents.styles) == {"nature": 4, "food": 4}
    twice = make_task(**size | {"prompts": 30}).planned
    assert Counter(item.sample for item in twice.items) == {0: 20, 1: 10}


def test_with_levels_each_model_is_graded_on_each_prompt():
    items = [item for item in make_task("levels", prompts=5).planned.items if item.kind == "plain"]
    assert Counter(item.first for item in items) == {"tiny-7": 5, "base": 5}
    assert {item.second for item in items} == {""}
    assert all(len(item.shown) == 1 for item in items)


def test_all_models_are_paired_with_each_other_so_no_image_comes_more_often_than_another():
    planned = make_task(models=("tiny-8", "tiny-7", "base"), repeats=3).planned
    items = [item for item in planned.items if item.kind == "plain"]
    assert Counter((item.first, item.second) for item in items) == {
        ("tiny-8", "tiny-7"): 6,
        ("tiny-8", "base"): 6,
        ("tiny-7", "base"): 6,
    }
    images = Counter((one.model, one.prompt, one.sample) for item in items for one in item.shown)
    assert len(images) == 18
    assert set(images.values()) == {2}
    repeated = Counter(one.model for item in planned.items if item.kind == "repeat" for one in item.shown)
    assert repeated == {"tiny-8": 2, "tiny-7": 2, "base": 2}, "neither do repeats tell the candidate"


def test_the_plan_says_how_many_items_a_task_of_three_models_has():
    for protocol in ("paired", "levels"):
        plan = plan_items(protocol, 0.3, raters=5, models=3)
        prompts = [f"prompt {number}" for number in range(plan.prompts)]
        choice = Choice(prompts, ["x"] * len(prompts), 1)
        contents = plan_contents(plan, choice, dict.fromkeys("abc", "digest"), candidate="b", seed=0)
        assert len(contents.items) == plan.items
        assert plan.plain_items == 3 * plan.prompts


def test_a_repeat_shows_the_images_of_a_plain_item_again():
    contents = make_task(prompts=9, repeats=5).planned
    repeats = [item for item in contents.items if item.kind == "repeat"]
    assert len({item.repeats for item in repeats}) == 5
    for item in repeats:
        original = contents.items[item.repeats]
        assert original.kind == "plain"
        assert original.shown == item.shown


def test_checks_of_pairs_are_right_as_often_on_either_model_and_half_of_them_are_noise():
    contents = make_task(checks=8).planned
    checks = [item for item in contents.items if item.kind == "check"]
    wrong = [item.shown[0 if item.expected == "second" else 1] for item in checks]
    right = [item.shown[1 if item.expected == "second" else 0] for item in checks]
    assert Counter(item.expected for item in checks) == {"first": 4, "second": 4}
    assert sum(one.model == NOISE for one in wrong) == 4
    assert Counter(item.expected for item, one in zip(checks, wrong, strict=True) if one.model == NOISE) == {
        "first": 2,
        "second": 2,
    }
    for item, bad, good in zip(checks, wrong, right, strict=True):
        assert good.prompt == item.prompt
        assert bad.model == NOISE or bad.prompt != item.prompt
        assert item.dimension == "overall"


def test_checks_of_levels_fail_in_what_they_test():
    checks = [item for item in make_task("levels", checks=6).planned.items if item.kind == "check"]
    assert {item.expected for item in checks} == {"fail"}
    for item in checks:
        (shown,) = item.shown
        assert item.dimension == ("overall" if shown.model == NOISE else "text_alignment")
        assert shown.model == NOISE or shown.prompt != item.prompt


def test_a_check_of_another_prompt_never_shows_the_same_prompt_in_another_spelling():
    contents = plan(prompts=["A  cat", "a cat", "dog"], styles=["x"] * 3, checks=16, repeats=0)
    for item in contents.items:
        if item.kind == "check":
            wrong = item.shown[0 if item.expected == "second" else 1]
            if wrong.model != NOISE:
                assert {contents.prompts[wrong.prompt], contents.prompts[item.prompt]} & {"dog"}


def test_more_images_than_there_are_is_an_error_that_says_how_many_there_are():
    with pytest.raises(
        ConfigError, match=r"needs 41 images.*there are 40: 20 test prompts.*seeds_per_prompt=2"
    ):
        make_task(prompts=41)
    with pytest.raises(ConfigError, match="at least 2 different test prompts"):
        plan(prompts=["cat", "Cat "], styles=["x", "x"], samples=3)


def test_the_same_plan_is_the_same_task_and_keeps_its_names_and_another_plan_is_another():
    task = make_task()
    assert make_task() == task
    assert make_task(seed=1).id != task.id
    assert make_task("levels").id != task.id
    assert make_task(models=("tiny-8", "base")).id != task.id


def test_names_of_items_and_images_are_others_in_another_home_although_the_task_is_the_same(
    tmp_path, monkeypatch
):
    """They are keyed by a secret, so who knows code, settings and prompts cannot compute which image is whose."""
    first = make_task(secret=None)
    monkeypatch.setenv("SRPO_HOME", str(tmp_path / "other"))
    second = make_task(secret=None)
    assert first.id == second.id
    assert not set(first.items) & set(second.items)
    assert not set(first.shown_images) & set(second.shown_images)
    assert first.token != second.token


def test_which_image_is_called_a_is_random():
    slots = Counter(item.first_is_a for item in make_task(prompts=40, checks=0, repeats=0).items.values())
    assert 8 <= slots[True] <= 32, "fewer or more once in 10,000 times"


def test_a_task_is_found_by_the_beginning_of_its_name():
    task = make_task()
    assert find_task(task.id[:6]) == find_task(task.id) == task
    other = make_task(seed=1)
    with pytest.raises(DataError, match=f"several tasks begin with ''.*{min(task.id, other.id)}"):
        find_task("")
    with pytest.raises(DataError, match="no task begins with 'zz'"):
        find_task("zz")


def test_a_task_file_that_is_damaged_changed_or_missing_is_one_line():
    task = make_task()
    path = task.directory / "task.json"
    content = json.loads(path.read_text())
    content["planned"]["seed"] = 5
    path.write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=f"is not the task {task.id}"):
        read_task(task.directory)
    path.write_text("{")
    with pytest.raises(ArtifactError, match=r"task\.json is damaged"):
        read_task(task.directory)
    path.unlink()
    with pytest.raises(ArtifactError, match="is missing"):
        read_task(task.directory)


def test_writing_a_task_again_keeps_its_secret():
    task = make_task()
    assert write_task(task.planned) == task
