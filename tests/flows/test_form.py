import pytest
import yaml
from pydantic import ValidationError

from flows.form import CHOICES, SettingsPatch, parse_patch
from srpo_core import config
from srpo_core.config import Settings, patched
from srpo_core.errors import ConfigError

TINY = {"seed": 4, "train": {"optimizer": {"betas": [0.5, 0.6]}}, "select": {"keep": {"judge_top5": -0.2}}}


def described(part, at=""):
    for name, field in part.model_fields.items():
        yield f"{at}{name}", field
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, config.Part):
            yield from described(kind, f"{at}{name}.")


def in_schema(schema, path):
    node = schema
    for key in path.split("."):
        while "$ref" in node or "anyOf" in node:
            node = (
                schema["$defs"][node["$ref"].rsplit("/", 1)[1]]
                if "$ref" in node
                else next(kind for kind in node["anyOf"] if kind.get("type") != "null")
            )
        node = node["properties"][key]
    return node


def test_every_setting_is_in_the_form_with_its_description_and_none_is_required():
    schema = SettingsPatch.model_json_schema()
    for path, field in described(Settings):
        entry = in_schema(schema, path)
        if field.description:
            assert entry["description"] == field.description, path
    assert all("required" not in part for name, part in schema["$defs"].items() if name.endswith("Patch"))
    assert "required" not in schema


def test_names_of_registry_entries_are_choices_in_the_form():
    schema = SettingsPatch.model_json_schema()
    for path in ("model.base", "judge.scorer", "train.method", "select.maximize"):
        kinds = in_schema(schema, path)["anyOf"]
        kind = next(kind for kind in kinds if kind.get("type") != "null")
        assert tuple(kind.get("enum", [kind.get("const")])) == CHOICES[path]
    assert "open_clip" in CHOICES["rewards.scorer"]
    assert set(CHOICES["judge.scorer"]) - set(CHOICES["rewards.scorer"]) == {
        "style_subject_judge",
        "timm_judge",
    }


@pytest.mark.parametrize("profile", sorted(config.PROFILES_DIR.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_form_accepts_every_preset(profile):
    values = yaml.safe_load(profile.read_text(encoding="utf-8"))
    assert (
        parse_patch(values).model_dump(mode="json", exclude_none=True)["judge"]["scorer"]
        in CHOICES["judge.scorer"]
    )


def test_a_patch_of_the_rewards_replaces_the_whole_list_and_needs_all_keys():
    two = [{"scorer": name, "path": f"models/{name}", "weight": 0.5} for name in ("hps_v2", "pick_score")]
    tiny = yaml.safe_load((config.PROFILES_DIR / "tiny.yaml").read_text())
    merged = patched(tiny, parse_patch({"rewards": two}).model_dump(mode="json", exclude_none=True))
    assert merged == {**tiny, "rewards": two}
    with pytest.raises(ConfigError, match=r"rewards.0.scorer: Input should be .*'hps_v2'"):
        parse_patch({"rewards": [{**two[0], "scorer": "timm_judge"}]})
    with pytest.raises(ConfigError, match=r"missing key 'rewards\.0\.weight'"):
        parse_patch({"rewards": [{"scorer": "hps_v2", "path": "models/hps_v2"}]})


def test_a_patch_changes_only_the_keys_it_contains():
    tiny = yaml.safe_load((config.PROFILES_DIR / "tiny.yaml").read_text())
    merged = patched(tiny, parse_patch(TINY).model_dump(mode="json", exclude_none=True))
    expected = yaml.safe_load((config.PROFILES_DIR / "tiny.yaml").read_text())
    expected["seed"] = 4
    expected["train"]["optimizer"]["betas"] = [0.5, 0.6]
    expected["select"]["keep"]["judge_top5"] = -0.2
    assert merged == expected
    assert patched(tiny, parse_patch({}).model_dump(mode="json", exclude_none=True)) == tiny


@pytest.mark.parametrize(
    ("patch", "line"),
    [
        ({"sead": 1}, r"^patch: unknown key 'sead'"),
        ({"train": {"step": 1}}, r"unknown key 'train.step'"),
        ({"seed": -1}, r"seed.*greater than or equal to 0"),
        ({"train": {"method": "dpo"}}, r"train.method.*'srpo'"),
    ],
)
def test_an_invalid_patch_gives_a_one_line_error_that_names_the_key(patch, line):
    with pytest.raises(ConfigError, match=line) as caught:
        parse_patch(patch)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValidationError):
        SettingsPatch.model_validate(patch)


def test_the_word_null_sets_a_setting_to_null_and_an_empty_field_keeps_it():
    tiny = yaml.safe_load((config.PROFILES_DIR / "tiny.yaml").read_text())
    kept = patched(tiny, parse_patch({"train": {"early_stop": None}}).model_dump(exclude_none=True))
    off = patched(tiny, parse_patch({"train": {"early_stop": "null"}}).model_dump(exclude_none=True))
    assert kept == tiny
    assert off["train"]["early_stop"] is None
    assert Settings.model_validate(off).train.early_stop is None


def test_one_key_of_a_part_that_may_be_null_can_be_changed():
    tiny = yaml.safe_load((config.PROFILES_DIR / "tiny.yaml").read_text())
    patch = parse_patch({"train": {"early_stop": {"alpha": 0.1, "limits": {"subject": {"margin": -0.2}}}}})
    changed = Settings.model_validate(patched(tiny, patch.model_dump(exclude_none=True))).train.early_stop
    assert (changed.alpha, changed.limits["subject"].margin) == (0.1, -0.2)
    assert changed.limits["subject"].metric == tiny["train"]["early_stop"]["limits"]["subject"]["metric"]


def test_a_setting_that_may_not_be_null_is_not_set_to_null():
    with pytest.raises(ConfigError, match=r"train\.steps"):
        parse_patch({"train": {"steps": "null"}})
