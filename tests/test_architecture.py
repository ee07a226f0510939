"""Promises about the whole tree that no single module can keep: layers, stages, settings, dependencies."""

import ast
import hashlib
import importlib
import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import stage_deps
import yaml

from srpo_core.config import load_settings
from srpo_core.runtime.dvc_yaml import argument_name, files_below, read_stages

ROOT = Path(__file__).parents[1]
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
NUMERICAL = {
    "torch",
    "torchvision",
    "numpy",
    "scipy",
    "pandas",
    "PIL",
    "diffusers",
    "transformers",
    "open_clip",
}

COMPUTING = (ast.BinOp, ast.AugAssign, ast.For, ast.While, ast.IfExp, ast.If, ast.Compare, ast.Dict)


def test_the_stage_modules_are_the_stages_of_the_graph():
    modules = {path.stem for path in (ROOT / "srpo_core/stages").glob("[a-z]*.py")}
    assert modules == set(STAGES)


def test_dvc_yaml_documents_the_project_in_at_most_250_lines():
    assert len((ROOT / "dvc.yaml").read_text().splitlines()) <= 250
    for stage in read_stages(ROOT).values():
        assert stage.description != stage.name


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_receives_exactly_the_settings_that_dvc_watches(name):
    """`srpo stage` passes the values of `params:`, and the resources, which no stage may depend on."""
    run = importlib.import_module(f"srpo_core.stages.{name}").run
    arguments = set(inspect.signature(run).parameters)
    assert arguments - {"resources"} == {argument_name(key) for key in STAGES[name]["params"]}
    assert "resources" not in STAGES[name]["params"]


def test_embed_depends_on_the_settings_that_it_uses_and_not_on_whole_parts():
    """Another learning rate, or another metric of the evaluation, must not encode the prompts again."""
    assert not {"train", "select", "evaluate"} & set(STAGES["embed"]["params"])


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_exactly_the_code_that_can_change_its_result(name):
    listed = [entry for entry in STAGES[name]["deps"] if stage_deps.is_code(entry)]
    assert listed == stage_deps.dependencies([name])[name], (
        "run 'python tests/stage_deps.py' to update dvc.yaml"
    )


def test_every_stage_that_computes_depends_on_the_versions_of_the_libraries():
    assert all("requirements.lock" in stage["deps"] for stage in STAGES.values())


@pytest.fixture(scope="module")
def copy_of_the_code(tmp_path_factory):
    root = tmp_path_factory.mktemp("tree")
    shutil.copytree(ROOT / "srpo_core", root / "srpo_core", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / "requirements.lock", root / "requirements.lock")
    return root


def rerun_after(root: Path, *changes: tuple[str, str, str]) -> set[str]:
    """The stages whose code, as dvc.yaml lists it, has another hash after text in files was replaced."""
    before = code_hashes(root)
    originals = {}
    for name, old, new in changes:
        path = root / name
        text = path.read_text()
        originals.setdefault(path, text)
        assert old in text, f"{name} no longer has {old!r}: choose another text for this test"
        path.write_text(text.replace(old, new, 1))
    after = code_hashes(root)
    for path, text in originals.items():
        path.write_text(text)
    return {name for name in before if before[name] != after[name]}


def code_hashes(root: Path) -> dict[str, str]:
    hashes = {}
    for name, stage in STAGES.items():
        digest = hashlib.sha256()
        for entry in filter(stage_deps.is_code, stage["deps"]):
            for path in files_below(root / entry):
                digest.update(str(path).encode() + path.read_bytes())
        hashes[name] = digest.hexdigest()
    return hashes


def test_a_comment_or_the_description_of_a_setting_reruns_no_stage(copy_of_the_code):
    comments = [(f"srpo_core/{name}.py", '"""', '# a comment\n"""') for name in ("errors", "artifacts")]
    description = (
        "srpo_core/config/training.py",
        'description="number of optimizer steps"',
        'description="steps"',
    )
    assert rerun_after(copy_of_the_code, *comments, description) == set()


def test_an_edited_reward_retrains_and_an_edited_report_gate_or_quantizer_does_not(copy_of_the_code):
    edits = {
        name: rerun_after(copy_of_the_code, (f"srpo_core/{name}", '"""', '# edited\n"""'))
        for name in ("scorers/open_clip.py", "report/page.py", "gates/rules.py", "quantizers/gguf.py")
    }
    assert edits == {
        "scorers/open_clip.py": {"check_reward", "train", "select", "evaluate", "quantize", "report"},
        "report/page.py": {"report"},
        "gates/rules.py": {"evaluate", "gate", "report", "quantize"},
        "quantizers/gguf.py": {"quantize"},
    }


def test_a_new_version_of_a_library_reruns_every_stage(copy_of_the_code):
    assert rerun_after(copy_of_the_code, ("requirements.lock", "\ntorch==", "\ntorch==99.")) == set(STAGES)


def test_a_new_module_of_a_package_that_a_stage_uses_needs_no_edit_of_dvc_yaml(copy_of_the_code):
    before = code_hashes(copy_of_the_code)
    (copy_of_the_code / "srpo_core/scorers/another.py").write_text('"""Another scorer."""\n')
    after = code_hashes(copy_of_the_code)
    (copy_of_the_code / "srpo_core/scorers/another.py").unlink()
    assert before["train"] != after["train"]


def test_dvc_does_not_hash_compiled_files():
    assert "__pycache__" in (ROOT / ".dvcignore").read_text().split()


def test_code_without_effect_on_results_uses_no_numerical_library():
    """Devices are counted and chosen in runtime; the release code that stages use is tested below."""
    allowed = {"srpo_core.runtime.ray_cluster": {"torch"}}
    graph = stage_deps.graph()
    for module in stage_deps.modules_without_effect():
        if module.startswith("srpo_core.release"):
            continue
        imported = {one.partition(".")[0] for one in graph.find_modules_directly_imported_by(module)}
        assert imported & NUMERICAL <= allowed.get(module, set()), module


def test_stages_use_of_releases_only_the_files_of_the_champion():
    graph = stage_deps.graph()
    used = {
        imported
        for name in STAGES
        for module in stage_deps.modules_of_stage(name)
        for imported in graph.find_modules_directly_imported_by(module)
        if imported.startswith("srpo_core.release")
    }
    assert used == {"srpo_core.release.champion"}
    imported = graph.find_modules_directly_imported_by("srpo_core.release.champion")
    assert not NUMERICAL & {one.partition(".")[0] for one in imported}


@pytest.mark.parametrize("path", sorted((ROOT / "srpo_core/config").glob("*.py")), ids=lambda path: path.stem)
def test_the_settings_declare_and_do_not_compute(path):
    """DVC watches the values of settings and not this code: outside of validators, which only reject, no arithmetic."""
    tree = ast.parse(path.read_text())
    for part in [node for node in tree.body if isinstance(node, ast.ClassDef)]:
        for function in [node for node in part.body if isinstance(node, ast.FunctionDef)]:
            if any("model_validator" in ast.unparse(decorator) for decorator in function.decorator_list):
                continue
            if "classmethod" in map(
                ast.unparse, function.decorator_list
            ):  # a constructor for tests and benchmarks
                sources = [path.read_text() for path in (ROOT / "srpo_core").rglob("*.py")]
                assert not any(f"{part.name}.{function.name}(" in source for source in sources)
                continue
            found = [ast.unparse(node) for node in ast.walk(function) if isinstance(node, COMPUTING)]
            calls = {ast.unparse(node.func) for node in ast.walk(function) if isinstance(node, ast.Call)}
            assert not found + sorted(calls - {"list"}), (
                f"{part.name}.{function.name} computes: move it to its user"
            )


def test_training_never_reports_to_ray_which_costs_two_seconds_a_call():
    sources = [path.read_text() for path in (ROOT / "srpo_core").rglob("*.py")]
    assert not [text for text in sources if re.search(r"\btrain\.report\(", text)]


def test_a_threshold_of_the_gate_does_not_reach_training():
    upstream = ["ingest", "embed", "rollouts", "check_reward", "train", "select"]
    assert not [name for name in upstream if "gate" in STAGES[name]["params"]]


def test_the_weights_of_further_scorers_are_watched_by_their_digests():
    """Their directories are keys of a mapping, which dvc.yaml cannot name one by one."""
    assert "models.lock" in STAGES["evaluate"]["deps"]
    assert "models.lock" not in STAGES["train"]["deps"]


def test_training_watches_the_weights_of_all_rewards():
    """dvc.yaml can name only the first; check_reward writes the digests of the others into a file of train's."""
    for name in ("check_reward", "train", "select", "evaluate", "quantize"):
        assert "${rewards[0].path}" in STAGES[name]["deps"]
    assert "models.lock" in STAGES["check_reward"]["deps"]
    assert "runs/check_reward/agreement.json" in STAGES["train"]["deps"]


def test_the_number_of_images_that_are_judged_does_not_retrain():
    """embed writes a file per split. Train depends on its own, and on that of the prompts of early stop."""
    deps = {
        name: [entry for entry in STAGES[name]["deps"] if entry.startswith("runs/embed")] for name in STAGES
    }
    assert deps["train"] == ["runs/embed/train.safetensors", "runs/embed/alarm.safetensors"]
    assert not {"select", "evaluate", "generate", "check_reward"} & set(STAGES["train"]["params"])


def test_another_learning_rate_method_or_seed_generates_no_pair_again():
    params = STAGES["rollouts"]["params"]
    assert "seed" not in params
    assert "train.rollout" not in params
    assert not [key for key in params if key.startswith(("train.optimizer", "train.steps", "control_words"))]
    assert not {"train", "generate", "control_words", "rewards"} & set(params)


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
