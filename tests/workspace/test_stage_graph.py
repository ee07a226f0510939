from pathlib import Path

import pytest
import yaml

from srpo_core.errors import ConfigError
from srpo_core.workspace.stage_graph import read_graph

ROOT = Path(__file__).resolve().parents[2]


def project(path: Path, stages: dict) -> Path:
    (path / ".dvc").mkdir()
    (path / ".dvc/config").write_text("[core]\n    no_scm = true\n")
    (path / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    return path


def test_the_graph_holds_every_stage_of_dvc_yaml_once_after_those_it_needs(tmp_path):
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    graph = read_graph(ROOT, tmp_path)
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
    assert [stage.name for stage in read_graph(ROOT, tmp_path).stages if stage.needs_passed] == ["quantize"]


def test_stages_of_equal_rank_keep_their_order_in_dvc_yaml(tmp_path):
    graph = read_graph(
        project(
            tmp_path,
            {
                "last": {"cmd": "true", "deps": ["a.out", "z.out"]},
                "z": {"cmd": "true", "outs": ["z.out"], "desc": "the last letter"},
                "a": {"cmd": "true", "outs": ["a.out"]},
            },
        ),
        tmp_path / "site",
    )
    assert [stage.name for stage in graph.stages] == ["z", "a", "last"]
    assert [stage.description for stage in graph.stages] == ["the last letter", "a", "last"]


def test_only_data_that_a_stage_reads_is_named(tmp_path):
    root = project(tmp_path, {"ingest": {"cmd": "true", "deps": ["data/cats"]}})
    (root / "data").mkdir()
    for name in ("cats", "dogs"):
        (root / f"data/{name}.dvc").write_text(yaml.safe_dump({"outs": [{"path": name, "md5": "0" * 32}]}))
    assert read_graph(root, tmp_path / "site").data == ("data/cats.dvc",)


def test_a_directory_without_stages_is_one_clear_error(tmp_path):
    (tmp_path / "plain").mkdir()
    with pytest.raises(ConfigError, match=r"dvc.yaml in .*plain cannot be used"):
        read_graph(tmp_path / "plain", tmp_path / "site")
    with pytest.raises(ConfigError, match=r"has no stages: dvc.yaml is missing or empty"):
        read_graph(project(tmp_path, {}), tmp_path / "site")


def test_a_circle_is_one_clear_line(tmp_path):
    root = project(
        tmp_path,
        {
            "one": {"cmd": "true", "deps": ["b"], "outs": ["a"]},
            "two": {"cmd": "true", "deps": ["a"], "outs": ["b"]},
        },
    )
    with pytest.raises(ConfigError) as caught:
        read_graph(root, tmp_path / "site")
    assert "\n" not in str(caught.value)
