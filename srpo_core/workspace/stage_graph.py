"""The stage graph, read from dvc.yaml by DVC itself: the project keeps no second list of stages."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from srpo_core.errors import ConfigError

NEEDS_PASSED: Final = "a passed decision"


@dataclass(frozen=True)
class Stage:
    """One stage of dvc.yaml: its name, what it is for, and its free-form `meta`."""

    name: str
    description: str
    meta: Mapping[str, Any]

    @property
    def needs_passed(self) -> bool:
        """Whether the stage may run only on a model that the gate let through (`meta: {needs: ...}`)."""
        return self.meta.get("needs") == NEEDS_PASSED


@dataclass(frozen=True)
class StageGraph:
    """The stages, each after those that it needs, and the `*.dvc` files of the data that they read."""

    stages: tuple[Stage, ...]
    data: tuple[str, ...]


def read_graph(root: Path, site_cache: Path) -> StageGraph:
    """Read the stage graph of the project at `root`; stages of equal rank keep their order in dvc.yaml.

    DVC keeps its own notes in `site_cache`.

    Raises:
        ConfigError: dvc.yaml or a settings file that it names is missing or wrong; DVC's words, one line.
    """
    import networkx as nx
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.stage import PipelineStage

    try:
        with Repo(str(root), config={"core": {"site_cache_dir": str(site_cache)}}) as repo:
            graph = repo.index.graph
    except DvcException as error:
        raise ConfigError(f"dvc.yaml in {root} cannot be used: {' '.join(str(error).split())}") from None
    stages = [node for node in graph if isinstance(node, PipelineStage)]
    if not stages:
        raise ConfigError(f"{root} has no stages: dvc.yaml is missing or empty")
    place = {stage: number for number, stage in enumerate(graph)}
    ordered = nx.lexicographical_topological_sort(graph.reverse(), key=place.__getitem__)
    needed = set().union(*(nx.descendants(graph, stage) for stage in stages))
    return StageGraph(
        stages=tuple(
            Stage(node.name, node.desc or node.name, dict(node.meta or {}))
            for node in ordered
            if isinstance(node, PipelineStage)
        ),
        data=tuple(sorted(node.path_in_repo for node in needed if not isinstance(node, PipelineStage))),
    )
