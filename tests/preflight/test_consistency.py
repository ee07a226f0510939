from dataclasses import replace
from importlib.util import find_spec

import pytest
import yaml

from srpo_core.config import PROFILES_DIR, parse_settings, patched
from srpo_core.errors import ConfigError
from srpo_core.preflight import consistency
from srpo_core.preflight.consistency import require_consistent
from srpo_core.scorers.metrics import METRICS

PRESETS = sorted(PROFILES_DIR.glob("*.yaml"))


def values():
    return yaml.safe_load((PROFILES_DIR / "tiny.yaml").read_text(encoding="utf-8"))


def settings(patch):
    return parse_settings(patched(values(), patch), "the test")


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_every_shipped_preset_is_consistent(preset):
    require_consistent(parse_settings(yaml.safe_load(preset.read_text(encoding="utf-8")), preset.name))


@pytest.mark.parametrize(
    ("patch", "line"),
    [
        (
            {"select": {"maximize": "beauty"}},
            r"^select\.maximize: unknown metric 'beauty': known are .*reward",
        ),
        ({"select": {"keep": {"beauty": -0.1}}}, r"^select\.keep: unknown metric 'beauty'"),
        (
            {"evaluate": {"metrics": [*values()["evaluate"]["metrics"], "beauty"]}},
            r"^evaluate\.metrics: unknown",
        ),
        (
            {"gate": {"objective": "judge_sgp"}},
            r"^gate\.objective asks for 'judge_sgp', which evaluate does not",
        ),
        (
            {"gate": {"rules": {"reward_kept": {"metric": "beauty"}}}},
            r"^gate\.rules\.reward_kept asks for 'beauty'",
        ),
        ({"quantize": {"gain": "judge_sgp"}}, r"^quantize\.gain asks for 'judge_sgp'"),
        (
            {"quantize": {"gain": "diversity"}},
            r"^quantize\.gain is 'diversity', which is not defined for a single image",
        ),
        ({"select": {"maximize": "kid"}}, r"^select asks for 'kid', which compares with real images"),
        (
            {"train": {"early_stop": {"seeds_per_prompt": 1}}},
            r"^train\.early_stop\.seeds_per_prompt is 1, but 'diversity'",
        ),
        (
            {"train": {"early_stop": {"limits": {"subject": {"metric": "beauty"}}}}},
            r"^train\.early_stop\.limits\.subject: unknown metric 'beauty'",
        ),
        (
            {"train": {"early_stop": {"limits": {"subject": {"metric": "judge_score"}}}}},
            r"^train\.early_stop\.limits\.subject, select_judge: metric 'judge_score' needs a judge that",
        ),
        (
            {"train": {"early_stop": {"limits": {"subject": {"metric": "kid"}}}}},
            r"^train\.early_stop asks for 'kid', which compares with real images",
        ),
        ({"train": {"early_stop": {"base_seeds": 1}}}, r"^train\.early_stop\.base_seeds is 1, but an image"),
        (
            {"train": {"early_stop": {"num_prompts": 1}}},
            r"^train\.early_stop\.num_prompts is 1, but an image",
        ),
        ({"ingest": {"validation_share": 0}}, r"^ingest\.validation_share is 0"),
        ({"gate": {"resamples": 10}}, r"^the gate would refuse every model: 10 resamples are too few"),
        (
            {"evaluate": {"num_prompts": 3}, "quantize": {"num_prompts": 3}},
            r"^the gate would refuse every model: 3 prompts of 1 styles",
        ),
        ({"model": {"base": "sdxl"}}, r"unknown base model 'sdxl': known are flux"),
        ({"train": {"method": "dpo"}}, r"unknown method 'dpo'"),
        (
            {"train": {"batch_size": 4}, "resources": {"train_workers": 5}},
            r"^resources\.train_workers 5 is more than train\.batch_size 4",
        ),
        (
            {"train": {"rollout": {"source": "hybrid"}}, "resources": {"shard": True}},
            r"^resources\.shard is true and train\.rollout\.source is hybrid",
        ),
        (
            {"train": {"optimizer": {"kind": "adamw_8bit"}}, "resources": {"shard": True}},
            r"^resources\.shard is true and train\.optimizer\.kind is adamw_8bit",
        ),
        (
            {"train": {"compute": {"attention": "_native_cudnn"}}},
            r"^train\.compute\.attention _native_cudnn needs a GPU and resources\.use_gpu is false",
        ),
        (
            {"train": {"compute": {"attention": "_native_flash"}}, "resources": {"use_gpu": True}},
            r"^train\.compute\.attention _native_flash computes on a GPU only in bfloat16",
        ),
        (
            {
                "train": {"tune": "lora", "lora": {"frozen": "nf4"}, "compute": {"autocast": True}},
                "resources": {"shard": True},
            },
            r"^resources\.shard is true and train\.lora\.frozen is nf4",
        ),
        ({"judge": {"scorer": "taste"}}, r"^judge: unknown scorer 'taste': known are "),
        (
            {"rewards": [{"scorer": "timm_judge", "path": "nowhere", "weight": 1}]},
            r"^rewards\[0\]: 'timm_judge' does not score images against a text",
        ),
        (
            {"evaluate": {"scorers": {"reward": {"scorer": "open_clip", "path": "elsewhere"}}}},
            r"^evaluate\.scorers: 'reward' or 'reward_sgp' is the name of a metric",
        ),
        (
            {
                "rewards": [{"scorer": "open_clip", "path": path, "weight": 1} for path in ("one", "two")],
                "evaluate": {"scorers": {"reward_open_clip_2": {"scorer": "open_clip", "path": "elsewhere"}}},
            },
            r"^evaluate\.scorers: 'reward_open_clip_2' is the name of one of the rewards: rename the scorer",
        ),
        (
            {"select_judge": {"scorer": "pick_score"}},
            r"^select\.maximize, select_judge: metric 'judge_wanted' needs a judge that classifies styles and subjects, but "
            r"'pick_score' scores images against texts: measure judge_score, judge_sgp instead, or set another judge$",
        ),
        (
            {"evaluate": {"metrics": [*values()["evaluate"]["metrics"], "judge_sgp"]}},
            r"^evaluate\.metrics, judge: metric 'judge_sgp' needs a judge that scores images against texts, but '\w+' "
            r"classifies styles and subjects: measure judge_wanted, judge_top1, judge_top5 instead",
        ),
        ({"quantize": {"num_prompts": 400}}, r"^quantize\.num_prompts is 400, but evaluate\.num_prompts is"),
        ({"quantize": {"formats": {"q9": next(iter(values()["quantize"]["formats"].values()))}}}, "'q9'"),
        (
            {"evaluate": {"seeds_per_prompt": 1}},
            r"^evaluate\.seeds_per_prompt is 1, but 'diversity' compares",
        ),
    ],
)
def test_settings_that_would_fail_after_training_are_refused_with_the_name_of_the_key(patch, line):
    with pytest.raises(ConfigError, match=line) as caught:
        require_consistent(settings(patch))
    assert "\n" not in str(caught.value)


def test_resamples_must_be_enough_for_the_intervals_of_the_last_stage():
    gate = {"resamples": 1402}  # seven vetoes share 5 %
    require_consistent(settings({"gate": gate}))
    with pytest.raises(ConfigError, match="1402 resamples are too few for an interval"):
        require_consistent(settings({"gate": gate, "evaluate": {"stages": [0.5, 1.0]}}))


@pytest.mark.parametrize("stages", [[], [0.5], [1.0, 0.5, 1.0], [0.5, 0.5, 1.0], [0.0, 1.0], [1.5]])
def test_stages_that_do_not_ascend_to_all_prompts_are_refused(stages):
    with pytest.raises(ConfigError, match=r"evaluate"):
        settings({"evaluate": {"stages": stages}})


def test_halving_by_a_metric_over_all_images_is_refused(monkeypatch):
    over_all = replace(
        METRICS["judge_wanted"], over_all=lambda found, context: found.mean(0).expand(len(found))
    )
    monkeypatch.setattr(consistency, "METRICS", METRICS | {"diversity": over_all})
    with pytest.raises(ConfigError, match=r"select\.halving .* 'diversity' is defined over all images"):
        require_consistent(settings({}))
    require_consistent(settings({"select": {"halving": "null"}}))


def test_a_release_without_its_reference_format_is_refused():
    whole = values()
    del whole["quantize"]["formats"]["bf16"]
    with pytest.raises(ConfigError, match=r"quantize\.formats lacks bf16"):
        require_consistent(parse_settings(whole, "the test"))


@pytest.mark.skipif(find_spec("wandb") is not None, reason="needs an environment without the extra wandb")
def test_the_logger_wandb_without_its_package_is_refused_with_the_way_to_install_it():
    with pytest.raises(ConfigError, match=r"^resources\.loggers has wandb, .*: pip install '\.\[wandb\]'"):
        require_consistent(settings({"resources": {"loggers": ["tensorboard", "wandb"]}}))
