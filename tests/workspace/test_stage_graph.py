from pathlib import Path

import pytest
import yaml

from srpo_core.errors import ConfigError
from srpo_core.runtime.dvc_yaml import read_stages
from srpo_core.workspace.stage_graph import read_graph

ROOT = Path(__file__).resolve().parents[2]


def project(path: Path, stages: dict) -> Path:
    (path / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    return path


def test_the_graph_has_every_stage_of_dvc_yaml_once_after_its_dependencies(tmp_path):
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    graph = read_graph(ROOT)
    names = [stage.name for stage in graph.stages]
    assert sorted(names) == sorted(stages)
    outs = {
        str(out): name
        for name, stage in stages.items()
        for out in [*stage.get("outs", []), *stage.get("metrics", [])]
    }
    for name, stage in stages.items():
        for dependency in stage["deps"]:
            for out, maker in outs.items():
                if dependency == out or dependency.startswith(out + "/"):
                    assert names.index(maker) < names.index(name), f"{name} needs {maker}"
    assert graph.data == ()


def test_the_project_marks_only_quantize_as_needing_a_passed_decision(tmp_path):
    assert [stage.name for stage in read_graph(ROOT).stages if stage.needs_passed] == ["quantize"]


def test_independent_stages_keep_their_order_in_dvc_yaml(tmp_path):
    graph = read_graph(
        project(
            tmp_path,
            {
                "last": {"cmd": "true", "deps": ["a.out", "z.out"]},
                "z": {"cmd": "true", "outs": ["z.out"], "desc": "the last letter"},
                "a": {"cmd": "true", "outs": ["a.out"]},
            },
        )
    )
    assert [stage.name for stage in graph.stages] == ["z", "a", "last"]
    assert [stage.description for stage in graph.stages] == ["the last letter", "a", "last"]


def test_only_data_versions_that_a_stage_reads_are_listed(tmp_path):
    root = project(tmp_path, {"ingest": {"cmd": "true", "deps": ["data/cats"]}})
    (root / "data").mkdir()
    for name in ("cats", "dogs"):
        (root / f"data/{name}.dvc").write_text(yaml.safe_dump({"outs": [{"path": name, "md5": "0" * 32}]}))
    assert read_graph(root).data == ("data/cats.dvc",)


def test_an_input_inside_a_data_version_or_from_a_setting_names_its_file(tmp_path):
    root = project(tmp_path, {"ingest": {"cmd": "true", "deps": ["${ingest.source}/train.json"]}})
    (root / "params.yaml").write_text("ingest: {source: data/cats}")
    (root / "data").mkdir()
    (root / "data/cats.dvc").touch()
    assert read_graph(root).data == ("data/cats.dvc",)


@pytest.mark.parametrize(("dependency", "out"), [("a", "a/b"), ("a/b", "a"), ("a", "a")])
def test_a_stage_runs_after_one_whose_output_overlaps_its_input(tmp_path, dependency, out):
    stages = {"reads": {"cmd": "true", "deps": [dependency]}, "writes": {"cmd": "true", "outs": [out]}}
    assert [stage.name for stage in read_graph(project(tmp_path, stages)).stages] == ["writes", "reads"]


def test_a_cycle_of_stages_gives_an_error_that_names_them(tmp_path):
    root = project(
        tmp_path,
        {
            "one": {"cmd": "true", "deps": ["b"], "outs": ["a"]},
            "two": {"cmd": "true", "deps": ["a"], "outs": ["b"]},
        },
    )
    with pytest.raises(ConfigError, match=r"circle of stages \((one -> two -> one|two -> one -> two)\)"):
        read_graph(root)


def test_the_order_is_valid_for_dvc():
    """DVC's own graph has the same edges."""
    from dvc.repo import Repo
    from dvc.stage import PipelineStage

    with Repo(str(ROOT)) as repo:
        edges = {
            (one.name, other.name)
            for one, other in repo.index.graph.edges
            if isinstance(one, PipelineStage) and isinstance(other, PipelineStage)
        }
    stages = read_stages(ROOT).values()
    assert edges == {(one.name, other.name) for one in stages for other in stages if one.reads(other)}
