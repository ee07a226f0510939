"""Which code each stage of dvc.yaml depends on, from the import graph.

python tests/stage_deps.py      rewrite the code among the `deps:` of dvc.yaml
"""

from pathlib import Path

import grimp
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
STAGES = "srpo_core.stages"


def code_of_stages(names: list[str]) -> dict[str, list[str]]:
    """Files that each stage imports, directly or through others, relative to the root and sorted."""
    graph = grimp.build_graph("srpo_core", cache_dir=None)
    return {name: sorted(_files(graph, f"{STAGES}.{name}")) for name in names}


def is_code(dependency: str) -> bool:
    """Whether an entry of `deps:` is a file of the package."""
    return dependency.startswith("srpo_core/")


def _files(graph: grimp.ImportGraph, stage: str) -> set[str]:
    modules = graph.find_upstream_modules(stage) | {stage}
    # importing a.b.c runs a and a.b as well, and what those import
    packages = {
        ".".join(module.split(".")[:depth]) for module in modules for depth in range(1, module.count(".") + 1)
    }
    while missing := packages - modules:
        modules |= missing.union(*(graph.find_upstream_modules(package) for package in missing))
        packages = {".".join(m.split(".")[:depth]) for m in modules for depth in range(1, m.count(".") + 1)}
    files = {_file(module) for module in modules}
    return files | {str(data) for file in files for data in _templates(file)}


def _file(module: str) -> str:
    path = Path(*module.split("."))
    return str(path / "__init__.py" if (ROOT / path).is_dir() else path.with_suffix(".py"))


def _templates(file: str) -> list[Path]:
    """Templates and scripts that lie beside a package's code are code, too."""
    if not file.endswith("__init__.py"):
        return []
    directory = (ROOT / file).parent
    return [path.relative_to(ROOT) for kind in ("*.j2", "*.js") for path in directory.glob(kind)]


def main() -> None:
    yaml = YAML()
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width = 120
    path = ROOT / "dvc.yaml"
    document = yaml.load(path)
    for name, code in code_of_stages(list(document["stages"])).items():
        dependencies = document["stages"][name]["deps"]
        kept = [entry for entry in dependencies if not is_code(entry)]
        dependencies[:] = kept + code
    yaml.dump(document, path)


if __name__ == "__main__":
    main()
