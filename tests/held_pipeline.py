"""A stand-in for the pipeline that publishes a real release and stops in any stage until a test lets it go on."""

import shutil
from pathlib import Path

import yaml
from publishable import make_reproduced
from standin import ROOT, git

STAGES = ("ingest", "embed", "check_reward", "train", "select", "evaluate", "gate", "report", "quantize")
AFTER = {
    "embed": ["runs/ingest"],
    "check_reward": ["runs/embed"],
    "train": ["runs/check_reward"],
    "select": ["runs/train"],
    "evaluate": ["runs/select"],
    "gate": ["runs/select", "runs/evaluate/figures.parquet"],
    "report": ["runs/select", "runs/gate/decision.json"],
    "quantize": ["runs/select", "assets/tiny/family/base", "runs/gate/decision.json"],
}
# each stage copies what the real one has written, counts that it ran, and waits while the file `hold` names it
STEPS = """\
import os, shutil, sys, time
from pathlib import Path

stage, home = sys.argv[1], Path(os.environ["SRPO_HOME"])
with (home / "ran").open("a") as ran:
    ran.write(f"{stage}\\n")
hold, pid = home / "hold", home / "pid"
if hold.exists() and hold.read_text() == stage:
    pid.with_suffix(".part").write_text(str(os.getpid()))
    pid.with_suffix(".part").rename(pid)
    while hold.exists():
        time.sleep(0.1)
shutil.copytree(Path("recorded") / stage, Path("runs") / stage, dirs_exist_ok=True)
if stage in ("ingest", "embed", "check_reward", "train", "select"):  # other settings give another result
    shutil.copy("params.yaml", Path("runs") / stage)
"""


def make_held_pipeline(path: Path) -> Path:
    """Make the checkout: a project that can be published, whose nine stages are copies, and the project's flows."""
    path.mkdir()
    make_reproduced(path)
    shutil.rmtree(path / ".git")
    shutil.rmtree(path / ".dvc")
    (path / "dvc.lock").unlink()
    (path / "runs").rename(path / "recorded")
    for name in ("ingest", "check_reward"):
        (path / "recorded" / name).mkdir()
        (path / "recorded" / name / "result.txt").write_text(name)
    graph = yaml.safe_load((path / "dvc.yaml").read_text())
    graph["stages"] = {name: _stage(name, graph["stages"].get(name, {})) for name in STAGES}
    (path / "dvc.yaml").write_text(yaml.safe_dump(graph, sort_keys=False))
    (path / "steps.py").write_text(STEPS)
    (path / ".dvc").mkdir()
    for name in ("config", ".gitignore"):
        shutil.copy(ROOT / ".dvc" / name, path / ".dvc")
    for name in (".gitignore", ".dvcignore", "pipelines.yaml"):
        shutil.copy(ROOT / name, path / name)
    for name in ("profiles", "assets/tiny/hpd", "assets/tiny/family"):
        shutil.copytree(ROOT / name, path / name, dirs_exist_ok=True)
    shutil.copytree(ROOT / "flows", path / "flows", ignore=shutil.ignore_patterns("__pycache__"))
    git(path, "init", "--quiet", "--initial-branch=main")
    git(path, "add", ".")
    git(path, "add", "--force", "recorded")
    git(path, "commit", "--quiet", "-m", "a pipeline that can be held")
    return path


def _stage(name: str, known: dict) -> dict:
    entry = {key: known[key] for key in ("params", "metrics", "outs") if key in known}
    if not known:
        entry["outs"] = [f"runs/{name}"]
    entry |= {
        "desc": f"copies {name}",
        "cmd": f"python steps.py {name}",
        "deps": ["steps.py", *AFTER.get(name, [])],
    }
    if name in ("ingest", "train"):
        entry["params"] = [name]
    if name == "quantize":
        entry["meta"] = {"needs": "a passed decision"}
    return entry
