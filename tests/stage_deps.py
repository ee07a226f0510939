"""Which code each stage of dvc.yaml depends on, from the import graph.

python tests/stage_deps.py      rewrite the code among the `deps:` of dvc.yaml

The rule: a stage depends on the code that it imports, directly or through other modules, except for the code that
cannot change its result (`WITHOUT_EFFECT`). A package is listed as its directory if the stage imports more than half of
its modules, so that a new module needs no edit of dvc.yaml; otherwise its modules are listed. A stage that imports a
library depends on requirements.lock.
"""

import ast
import sys
from collections.abc import Collection
from functools import cache
from pathlib import Path

import grimp
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
PACKAGE = "srpo_core"
REQUIREMENTS = "requirements.lock"

# Code that cannot change a result. What only such a module imports is no dependency either.
WITHOUT_EFFECT = {
    "srpo_core.errors": "raises: an error ends a stage without a result",
    "srpo_core.credentials": "masks messages; no output of a stage contains one",
    "srpo_core.artifacts": "declares the files of stages, and reads and writes them without computing",
    "srpo_core.config": "declares which settings exist; DVC watches their values",
    "srpo_core.runtime": "decides where, when and how often code runs: devices, Ray, locks, resume, progress, times",
    "srpo_core.storage": "moves files whose digests are checked",
    "srpo_core.release": "hands the champion's files to evaluate, whose digests are checked",
}


def code_of_stages(names: list[str]) -> dict[str, list[str]]:
    """Return the files and directories of code that each stage depends on, relative to the root, sorted."""
    return {name: _compact(modules_of_stage(name)) for name in names}


def stages_with_libraries(names: list[str]) -> list[str]:
    """Return the stages whose code imports a library, at any depth."""
    return [name for name in names if any(_libraries(module) for module in modules_of_stage(name))]


def is_code(dependency: str) -> bool:
    """Whether an entry of `deps:` is code of the package, or the list of libraries."""
    return dependency.startswith(f"{PACKAGE}/") or dependency == REQUIREMENTS


def modules_of_stage(name: str) -> set[str]:
    """Return the modules that a stage imports and that can change its result."""
    return modules_of(f"{PACKAGE}.stages.{name}")


def modules_of(*names: str, without: Collection[str] = ()) -> set[str]:
    """Return modules with all that they import and that can change a result; without: packages to leave out, too."""
    found: set[str] = set()
    waiting = set(names)
    while waiting:
        module = waiting.pop()
        if module in found or _is_in(module, WITHOUT_EFFECT) or _is_in(module, without):
            continue
        found.add(module)
        waiting |= {
            one for one in graph().find_modules_directly_imported_by(module) if one.startswith(PACKAGE)
        }
        waiting |= {module.rpartition(".")[0]} - {""}  # importing a.b runs a as well
    return {module for module in found if not _only_documents(module)}


def modules_without_effect() -> list[str]:
    """Return every module that `WITHOUT_EFFECT` names, directly or as a part of a package."""
    return sorted(module for module in graph().modules if _is_in(module, WITHOUT_EFFECT))


@cache
def graph() -> grimp.ImportGraph:
    """Return the import graph; what is imported for type checkers alone does not count."""
    return grimp.build_graph(
        PACKAGE, cache_dir=None, include_external_packages=True, exclude_type_checking_imports=True
    )


def file_of(module: str) -> str:
    """Return a module's file, relative to the root."""
    path = Path(*module.split("."))
    return str(path / "__init__.py" if (ROOT / path).is_dir() else path.with_suffix(".py"))


def _is_in(module: str, packages: Collection[str]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in packages)


def _libraries(module: str) -> set[str]:
    imported = {one.partition(".")[0] for one in graph().find_modules_directly_imported_by(module)}
    return imported - {PACKAGE} - sys.stdlib_module_names


@cache
def _only_documents(module: str) -> bool:
    """Whether a package's __init__ holds nothing but a docstring or the version."""
    file = ROOT / file_of(module)
    body = ast.parse(file.read_text()).body if file.name == "__init__.py" else [ast.Pass()]
    return all(
        (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        or (isinstance(node, ast.Assign) and node.targets[0].id == "__version__")
        for node in body
    )


def _compact(modules: set[str]) -> list[str]:
    """Return the files of modules; a package of which most modules are used is its directory."""
    entries: set[str] = set()
    for module in modules:
        package = ".".join(module.split(".")[:2])
        path = Path(*package.split("."))
        own = {one for one in modules if one == package or one.startswith(f"{package}.")}
        every = {package, *graph().find_descendants(package)}
        computing = {one for one in every if not _only_documents(one)}
        if (ROOT / path).is_dir() and package != f"{PACKAGE}.stages" and 2 * len(own) > len(computing):
            entries.add(str(path))
        else:
            entries |= {file_of(module), *_templates(module)}
    return sorted(entries)


def _templates(module: str) -> set[str]:
    """Templates and scripts in the directory of a package are code, too."""
    directory = (ROOT / file_of(module)).parent
    return {str(path.relative_to(ROOT)) for kind in ("*.j2", "*.js") for path in directory.glob(kind)}


def dependencies(names: list[str]) -> dict[str, list[str]]:
    """Return all code among the `deps:` of each stage, with the list of libraries."""
    with_libraries = stages_with_libraries(names)
    return {
        name: [*code, REQUIREMENTS] if name in with_libraries else code
        for name, code in code_of_stages(names).items()
    }


def main() -> None:
    yaml = YAML()
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width = 120
    path = ROOT / "dvc.yaml"
    document = yaml.load(path)
    for name, code in dependencies(list(document["stages"])).items():
        entries = document["stages"][name]["deps"]
        kept = [entry for entry in entries if not is_code(entry)]
        entries[:] = kept + code
    yaml.dump(document, path)


if __name__ == "__main__":
    main()
