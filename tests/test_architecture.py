"""The promises of the house that a reader cannot see at a glance, held by tests."""

import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import stage_deps
import yaml

from srpo_core.config import Settings, load_settings

ROOT = Path(__file__).parents[1]
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
CODE = stage_deps.code_of_stages(list(STAGES))


def test_the_stage_modules_are_the_stages_of_the_graph():
    modules = {path.stem for path in (ROOT / "srpo_core/stages").glob("[a-z]*.py")}
    assert modules == set(STAGES)


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_receives_exactly_the_settings_that_dvc_watches(name):
    run = importlib.import_module(f"srpo_core.stages.{name}").run
    parts = set(inspect.signature(run).parameters)
    assert parts - {"resources"} == set(STAGES[name]["params"])
    assert parts <= set(Settings.model_fields)


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_exactly_the_code_that_it_imports(name):
    listed = [entry for entry in STAGES[name]["deps"] if stage_deps.is_code(entry)]
    assert listed == CODE[name], "run 'python tests/stage_deps.py' to mend dvc.yaml"


def test_an_edited_reward_retrains_and_an_edited_report_does_not():
    assert "srpo_core/scorers/open_clip.py" in CODE["train"]
    assert not [file for file in CODE["train"] if file.startswith("srpo_core/report/")]


def test_training_never_reports_to_ray_which_costs_two_seconds_a_call():
    sources = [path.read_text() for path in (ROOT / "srpo_core").rglob("*.py")]
    assert not [text for text in sources if re.search(r"\btrain\.report\(", text)]


def test_a_threshold_of_the_gate_does_not_reach_training():
    upstream = ["ingest", "embed", "check_reward", "train", "select", "evaluate"]
    assert not [name for name in upstream if "gate" in STAGES[name]["params"]]


def test_the_weights_of_further_scorers_are_watched_by_their_digests():
    """Their directories are keys of a mapping, which dvc.yaml cannot name one by one."""
    assert "models.lock" in STAGES["evaluate"]["deps"]
    assert "models.lock" not in STAGES["train"]["deps"]


def test_the_number_of_images_that_are_judged_does_not_retrain():
    """embed writes a file per split, and train depends on its own alone."""
    deps = {
        name: [entry for entry in STAGES[name]["deps"] if entry.startswith("runs/embed")] for name in STAGES
    }
    assert deps["train"] == ["runs/embed/train.safetensors"]
    assert not {"select", "evaluate", "generate", "check_reward"} & set(STAGES["train"]["params"])


def test_the_committed_settings_are_the_tiny_preset():
    assert (ROOT / "params.yaml").read_bytes() == (ROOT / "profiles/tiny.yaml").read_bytes()


@pytest.mark.parametrize("profile", sorted((ROOT / "profiles").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_preset_is_valid(profile):
    load_settings(profile)


def test_no_model_library_is_imported_with_the_command_line():
    heavy = [
        "torch",
        "diffusers",
        "transformers",
        "ray",
        "prefect",
        "dvc",
        "great_expectations",
        "boto3",
        "pandas",
        "pydantic",
        "numpy",
    ]
    script = f"import sys, srpo_core.__main__; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"
