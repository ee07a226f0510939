import pytest

from srpo_core.errors import ConfigError
from srpo_core.runtime.dvc_yaml import argument_name, read_stages, resolve, value_at

SETTINGS = {"model": {"path": "weights"}, "train": {"steps": 3, "early_stop": None}}


def test_a_stage_has_its_description_settings_inputs_outputs_and_needs(tmp_path):
    (tmp_path / "dvc.yaml").write_text(
        "stages:\n"
        "  embed: {cmd: x, desc: encode, deps: ['${model.path}', code], params: [seed, train.steps],\n"
        "          outs: [runs/a, {runs/b: {cache: false}}], metrics: [runs/c]}\n"
        "  quantize: {cmd: x, meta: {needs: a passed decision}}\n"
    )
    embed, quantize = read_stages(tmp_path).values()
    assert (embed.name, embed.description, embed.params) == ("embed", "encode", ("seed", "train.steps"))
    assert embed.outs == ("runs/a", "runs/b", "runs/c")
    assert [str(path) for path in embed.inputs(SETTINGS)] == ["weights", "code"]
    assert not embed.needs_passed
    assert quantize.needs_passed
    assert quantize.description == "quantize"


def test_watched_settings_have_the_names_used_in_dvc_lock(tmp_path):
    (tmp_path / "dvc.yaml").write_text(
        "stages: {train: {cmd: x, params: [model, train.steps, train.early_stop]}}"
    )
    watched = read_stages(tmp_path)["train"].watched(SETTINGS)
    assert watched == {"model": {"path": "weights"}, "train.steps": 3, "train.early_stop": None}


def test_templates_are_filled_from_the_settings():
    assert resolve("${model.path}/vae", SETTINGS) == "weights/vae"
    settings = {"rewards": [{"path": "first"}, {"path": "second"}]}
    assert resolve("${rewards[1].path}/a", settings) == "second/a"
    assert argument_name("train.rollout.source") == "train_rollout_source"


def test_a_missing_setting_is_named():
    with pytest.raises(ConfigError, match=r"dvc.yaml names the setting 'train.stepz'"):
        value_at(SETTINGS, "train.stepz")
    with pytest.raises(ConfigError, match=r"dvc.yaml names the setting 'train.steps.more'"):
        resolve("${train.steps.more}", SETTINGS)
    with pytest.raises(ConfigError, match=r"dvc.yaml names the setting 'rewards\[1\].path'"):
        resolve("${rewards[1].path}", {"rewards": [{"path": "first"}]})


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (None, "is missing: change to the top of the clone"),
        ("stages: [", "is not YAML"),
        ("{}", "has no stages"),
        ("- a", "has no stages"),
        ("stages: {train: 1}", "has a stage that cannot be read"),
    ],
)
def test_an_unusable_dvc_yaml_gives_a_one_line_error_that_does_not_name_profiles(tmp_path, text, fault):
    if text is not None:
        (tmp_path / "dvc.yaml").write_text(text)
    with pytest.raises(ConfigError, match=fault) as caught:
        read_stages(tmp_path)
    assert "profile" not in str(caught.value)
    assert "\n" not in str(caught.value)
