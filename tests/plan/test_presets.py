"""The presets at full size: every stage fits into the memory that they are for, and they differ only where they must."""

from pathlib import Path

import pytest
from counted_plans import shared_counter

from srpo_core.config import NULL, load_settings, parse_settings, patched, profile_path, read_values
from srpo_core.gates.shares import upper_end
from srpo_core.gates.spending import Stage, stage_sizes
from srpo_core.plan import GB, PRESETS, TERA, plan_presets, remedies
from srpo_core.plan.table import JUDGING, peaks_of_stages, show_presets
from srpo_core.preflight.consistency import require_consistent

ROOT = Path(__file__).resolve().parents[2]
ONE_CARD = sorted({preset.profile for preset in PRESETS if preset.cluster.gpus == 1})

# the keys in which a preset for one card differs from flux1_dev_lora
NUMBERS = {
    "generate.num_inference_steps", "select.num_prompts", "select.seeds_per_prompt",
    "evaluate.num_prompts", "evaluate.seeds_per_prompt",
    "resources.train_workers", "resources.generate_workers",
}  # fmt: skip
CARD = {"resources.hardware.tflops", "resources.hardware.float32_tflops"}
DIFFERENT = {
    "flux1_dev_lora_80gb": NUMBERS,
    "flux1_dev_lora_48gb": NUMBERS | CARD | {"resources.offload"},
    "flux1_dev_lora_24gb": NUMBERS
    | CARD
    | {
        "resources.offload",
        "resources.encode_batch_size",
        "generate.decode",
        "train.optimizer.kind",
        "train.lora.frozen",
        "train.lora.rank",
        "train.lora.alpha",
    },
}


def settings(name):
    return load_settings(profile_path(name, ROOT))


def differences(one, other, key=""):
    """Yield the dotted keys in which two nested mappings differ."""
    for name in one.keys() | other.keys():
        a, b = one.get(name), other.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from differences(a, b, f"{key}{name}.")
        elif a != b:
            yield f"{key}{name}"


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: f"{preset.profile}-{preset.cluster.gpus}")
def test_the_hardware_in_a_preset_is_the_card_of_its_plan(preset):
    hardware = settings(preset.profile).resources.hardware
    assert (hardware.tflops * TERA, hardware.mfu) == (preset.cluster.peak_flops, preset.cluster.mfu)
    assert hardware.float32_tflops / hardware.tflops == preset.cluster.float32


@pytest.fixture(scope="module")
def planned():
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return plan_presets(counter=shared_counter())


@pytest.mark.pipeline
def test_every_stage_of_every_preset_fits_into_its_gpu(planned):
    for preset, plan in planned:
        peaks = {stage: round(peak / GB, 1) for stage, peak in peaks_of_stages(plan).items()}
        print(preset.profile, preset.cluster.gpus, peaks, f"{plan.run_hours:.2f} h, {plan.cost:.2f}")
    assert {preset.profile: [] for preset, _ in planned} == {
        preset.profile: [stage for stage, peak in plan.peaks.items() if peak > preset.cluster.memory]
        for preset, plan in planned
    }


@pytest.mark.pipeline
def test_the_preset_for_24_gb_holds_the_blocks_of_the_base_in_4_bits(planned):
    plan = next(plan for preset, plan in planned if preset.profile == "flux1_dev_lora_24gb")
    matrices = (19 * 36 + 38 * 15) * 3072**2  # of 19 double and 38 single blocks, in squares of the width
    in_four_bits = matrices * (1 / 2 + 1 / 64 + 4 / (64 * 256))
    rest, trained = 11_901_408_320 - matrices, plan.case.sizes.trained
    assert trained == pytest.approx(261e6 / 4, rel=0.01), "adapters of rank 16 instead of 64"
    assert plan.memory["parameters"] == pytest.approx(in_four_bits + 2 * rest + 4 * trained, rel=0.001)
    assert plan.memory["optimizer"] == pytest.approx(2.03 * trained, rel=0.001)
    # the modulation of a double block: one width to six, converted to bfloat16 for each call
    assert plan.memory["weights out of 4 bits"] == 2 * 6 * 3072**2


@pytest.mark.pipeline
def test_the_host_of_the_24_gb_card_holds_the_base_and_in_quantize_the_weights_of_a_format_too(planned):
    plan = next(plan for preset, plan in planned if preset.profile == "flux1_dev_lora_24gb")
    base, pinned = 11_901_408_320, plan.case.sizes.pinned
    # in pinned memory a matrix of 3072 × 3072 takes 4096 × 4096 parameters; one 3, 4, 5 or 6 times as long 2, 4, 4 or 4 times that
    assert pinned == pytest.approx((19 * (6 * 4 + 8) + 38 * (2 + 4 + 4 + 3)) * 4096**2, rel=0.001)
    assert plan.hosts["evaluate"]["base"] == 2 * (pinned + plan.case.sizes.rest), "offloaded, in bfloat16"
    assert plan.hosts["quantize"] == {
        "base": 4 * (pinned + plan.case.sizes.rest),
        "weights of a format": 4 * base,
        "scorer": 4 * 986_109_441,
    }
    assert plan.hosts["train: loading"] == {"reward": 4 * 986_109_441}, "a block of the base is smaller"
    assert plan.hosts["train: export"] == {"adapters": 4 * plan.case.sizes.trained}


@pytest.mark.pipeline
def test_judging_takes_at_most_as_long_as_training_on_one_card(planned):
    hours = {
        preset.profile: (plan.hours_of("train"), plan.hours_of(*JUDGING))
        for preset, plan in planned
        if preset.cluster.gpus == 1
    }
    print(hours)
    assert sorted(hours) == ONE_CARD
    assert all(judging <= training for training, judging in hours.values())


@pytest.mark.pipeline
def test_the_table_has_a_line_for_every_preset(planned):
    from rich.console import Console

    console = Console(width=200, record=True, file=None, quiet=False)
    with console.capture() as captured:
        console.print(show_presets(planned))
    lines = [line.split() for line in captured.get().splitlines() if line.startswith("flux1_dev")]
    assert [line[0] for line in lines] == [preset.profile for preset in PRESETS]
    for line, (_, plan) in zip(lines, planned, strict=True):
        assert f"{plan.run_hours:.2f}" in line
        assert f"{plan.cost:.2f}" == line[-1]
        assert "yes" in line


@pytest.mark.pipeline
def test_the_table_of_the_docs_is_the_one_that_the_command_prints(planned):
    columns = {column.header: list(column.cells) for column in show_presets(planned).columns}
    assert columns.pop("fits") == ["yes"] * len(PRESETS)
    names, gpus, cost = (columns.pop(name) for name in ("profile", "GPUs", "cost"))
    cells = zip(
        [f"`{name}`" for name in names],
        [one.replace(" x ", " × ") for one in gpus],
        *columns.values(),
        [f"{one} $" for one in cost],
        strict=True,
    )
    expected = ["| " + " | ".join(row) + " |" for row in cells]
    lines = (ROOT / "docs/training.md").read_text(encoding="utf-8").splitlines()
    found = [line for line in lines if line.startswith("| `flux1_dev") and line.endswith(" $ |")]
    assert found == expected


def on_24_gb(**patch):
    """Return changed settings of the preset for 24 GB, and its GPU."""
    path = profile_path("flux1_dev_lora_24gb", ROOT)
    preset = next(preset for preset in PRESETS if preset.profile == "flux1_dev_lora_24gb")
    return parse_settings(patched(read_values(path), patch), "changed"), preset.cluster


@pytest.mark.nightly  # half a minute for figures that only the docs have
def test_adapters_of_rank_64_fit_into_24_gb_only_without_early_stop(planned, monkeypatch):
    """The docs name what rank 16 leaves free, and what rank 64 needs more."""
    monkeypatch.chdir(ROOT)
    of_rank_16 = next(plan for preset, plan in planned if preset.profile == "flux1_dev_lora_24gb")
    assert round((24 * GB - of_rank_16.peak) / GB, 1) == 0.2
    rank = {"lora": {"rank": 64, "alpha": 64}}
    watched, alone = (
        shared_counter().plan(*on_24_gb(train={**rank, **more})) for more in ({}, {"early_stop": NULL})
    )
    assert round((watched.peak - of_rank_16.peak) / GB) == 2
    assert not watched.fits
    assert alone.fits


@pytest.mark.pipeline
def test_the_advice_for_flux_on_24_gb_names_the_settings_that_make_it_fit(planned, monkeypatch):
    """The preset for 24 GB without the settings that save the most memory."""
    del planned  # its calls are counted before
    monkeypatch.chdir(ROOT)
    given, cluster = on_24_gb(train={"lora": {"frozen": "bfloat16"}}, resources={"offload": False})
    before = shared_counter().plan(given, cluster).peaks
    assert {"train: step", "select", "evaluate"} <= {name for name, peak in before.items() if peak > 24 * GB}
    advice, plan = remedies(given, cluster, counter=shared_counter())
    assert advice == ["generate.batch_size=1", "resources.offload=true", "train.lora.frozen=nf4"]
    assert plan.fits


@pytest.mark.parametrize("name", ONE_CARD)
def test_a_preset_for_one_card_differs_from_flux1_dev_lora_only_in_the_listed_keys(name):
    ours, lora = (settings(one).model_dump(mode="json") for one in (name, "flux1_dev_lora"))
    assert set(differences(ours, lora)) == DIFFERENT[name]
    require_consistent(settings(name))


@pytest.mark.parametrize("name", ONE_CARD)
def test_a_flawless_model_can_show_every_exact_rule_of_a_preset_for_one_card(name):
    whole = settings(name)
    prompts, seeds = whole.evaluate.num_prompts, whole.evaluate.seeds_per_prompt
    units = {"share": seeds, "share_of_prompts": 1}
    sizes = stage_sizes(prompts, whole.evaluate.stages)
    last = Stage(len(sizes) - 1, sizes)
    exact = {key: rule for key, rule in whole.gate.rules.items() if rule.compare in units}
    assert len(exact) == 4
    for key, rule in exact.items():
        of_each = units[rule.compare]
        confidence = last.share_confidence(whole.gate.confidence, rule.margin, of_each)
        least = upper_end(0, prompts * of_each, confidence)
        assert least <= rule.margin, f"{key}: even no such image leaves up to {least}"


def test_presets_is_not_combined_with_other_options(monkeypatch, capsys):
    from srpo_core.__main__ import main

    for words in (["--presets", "--gpus", "8"], ["--profile", "tiny"]):
        monkeypatch.setattr("sys.argv", ["srpo", "plan", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        assert "--presets" in capsys.readouterr().err
