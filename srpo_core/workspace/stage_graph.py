"""The stages of dvc.yaml in the order in which they run, and the data versions that they read."""

from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from srpo_core.config import PARAMS_FILE, read_values
from srpo_core.errors import ConfigError
from srpo_core.runtime.dvc_yaml import DVC_FILE, Stage, read_stages


@dataclass(frozen=True)
class StageGraph:
    """The stages, each after those whose outputs it reads, and the `*.dvc` files of the data that they read."""

    stages: tuple[Stage, ...]
    data: tuple[str, ...]


def read_graph(root: Path) -> StageGraph:
    """Read the stage graph of the project at `root`; stages that do not depend on each other keep the file's order.

    Raises:
        ConfigError: dvc.yaml or params.yaml is missing or wrong, or stages read each other's outputs in a circle.
    """
    stages = read_stages(root)
    return StageGraph(_in_order(stages, root), _data(stages, root))


def _in_order(stages: dict[str, Stage], root: Path) -> tuple[Stage, ...]:
    """Sort stages topologically; of those that could run next, the first of the file does."""
    sorter = TopologicalSorter(
        {
            name: [other.name for other in stages.values() if stage.reads(other)]
            for name, stage in stages.items()
        }
    )
    try:
        sorter.prepare()
    except CycleError as error:
        raise ConfigError(
            f"{root / DVC_FILE} has a circle of stages ({' -> '.join(error.args[1])}): restore it with git"
        ) from None
    place = {name: number for number, name in enumerate(stages)}
    ready: list[str] = []
    ordered: list[Stage] = []
    while sorter.is_active():
        ready = sorted([*ready, *sorter.get_ready()], key=place.__getitem__)
        name = ready.pop(0)
        ordered.append(stages[name])
        sorter.done(name)
    return tuple(ordered)


def _data(stages: dict[str, Stage], root: Path) -> tuple[str, ...]:
    """Find the `*.dvc` file, as `dvc add` names it, of each input or of a directory above it."""
    deps = {dependency for stage in stages.values() for dependency in stage.deps}
    settings = read_values(root / PARAMS_FILE) if any("${" in dependency for dependency in deps) else {}
    inputs = {path for stage in stages.values() for path in stage.inputs(settings)}
    found = {pointer for one in inputs for pointer in pointers(one) if (root / pointer).is_file()}
    return tuple(sorted(map(str, found)))


def pointers(path: Path) -> list[Path]:
    """Return the names of the `*.dvc` files by which DVC would track a path or a directory above it."""
    return [one.with_name(f"{one.name}.dvc") for one in (path, *path.parents) if one.name]
