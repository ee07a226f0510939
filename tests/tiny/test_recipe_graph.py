"""The graph of the recipe lists everything that a stage reads; its lock records the shipped files."""

import ast
import hashlib
import json

import pytest
import yaml

PACKAGE = "tiny_family"
MODULE = {"judge_a": "judges", "judge_b": "judges"}
STAGES = ("vae", "judge_a", "judge_b", "reward", "base", "distill", "measure", "family")
SHIPPED = {"family_base": "base", "reward": "reward", "judge_a": "judge_a", "judge_b": "judge_b"}


@pytest.fixture
def graph(tiny):
    return yaml.safe_load((tiny / "recipe/dvc.yaml").read_text())["stages"]


def imported(recipe, module):
    """Return a module of the recipe and all modules of the recipe that it imports, directly or not."""
    found, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        tree = ast.parse((recipe / PACKAGE / f"{name}.py").read_text())
        modules = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
        waiting += [path.split(".")[1] for path in modules if path.startswith(f"{PACKAGE}.")]
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_exactly_the_modules_of_the_recipe_that_it_imports(graph, tiny, stage):
    listed = {entry for entry in graph[stage]["deps"] if entry.startswith(PACKAGE)}
    modules = imported(tiny / "recipe", MODULE.get(stage, stage))
    assert listed == {f"{PACKAGE}/{name}.py" for name in modules}


def test_every_stage_is_in_the_graph(graph):
    assert set(graph) == set(STAGES)


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage not in ("measure", "family")])
def test_a_training_stage_depends_on_its_own_and_the_shared_settings(graph, tiny, stage):
    code = (tiny / f"recipe/{PACKAGE}/{MODULE.get(stage, stage)}.py").read_text()
    compiles = {"compile"} if "compiled(" in code else set()
    assert set(graph[stage]["params"]) == {"seed", "processes", stage} | compiles


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_reads_images_depends_on_them(graph, tiny, stage):
    reads = "read_pictures(" in "".join(
        (tiny / f"recipe/{PACKAGE}/{name}.py").read_text()
        for name in imported(tiny / "recipe", MODULE.get(stage, stage)) - {"pictures"}
    )
    assert ("../data/emoji4.parquet" in graph[stage]["deps"]) == reads


@pytest.mark.parametrize(("source", "part"), SHIPPED.items())
def test_the_shipped_files_match_the_lock(tiny, source, part):
    """Compare by DVC's digest of a directory: the MD5 of its list of files and their MD5s. Cards are written later."""
    stages = yaml.safe_load((tiny / "recipe/dvc.lock").read_text())["stages"]
    (recorded,) = (
        out["md5"] for stage in stages.values() for out in stage["outs"] if out["path"] == f"out/{source}"
    )
    root = tiny / "family" / part
    entries = [
        {
            "md5": hashlib.md5(path.read_bytes()).hexdigest(),
            "relpath": path.relative_to(root).as_posix(),
        }
        for path in sorted(root.rglob("*"), key=lambda path: path.relative_to(root).parts)
        if path.is_file() and path != root / "README.md"
    ]
    digest = hashlib.md5(json.dumps(entries, sort_keys=True).encode()).hexdigest()
    assert f"{digest}.dir" == recorded
