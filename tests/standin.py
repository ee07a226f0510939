"""Replace the repository by a small one: its real settings, and a dvc.yaml whose stages are a few lines each."""

import shutil
import subprocess
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]

DVC_YAML = """\
stages:
  ingest:
    desc: reads the data
    cmd: python steps.py ingest
    deps: [steps.py, "${ingest.source}"]
    params: [seed, ingest, train.rollout.source, check_reward.max_pairs, evaluate.real_images]
    outs: [runs/ingest]
  train:
    desc: takes time
    cmd: python steps.py train
    deps: [steps.py, runs/ingest]
    params: [train]
    outs: [runs/train]
  gate:
    desc: decides
    cmd: python steps.py gate
    deps: [steps.py, runs/train]
    params: [gate]
    metrics: [runs/gate/decision.json]
  report:
    desc: writes one page
    cmd: python steps.py report
    deps: [runs/gate/decision.json]
    outs: [runs/report]
  quantize:
    desc: writes the files of a release
    cmd: python steps.py quantize
    deps: [runs/gate/decision.json]
    outs: [runs/quantize]
    meta:
      needs: a passed decision
"""

STEPS = """\
import json, os, sys, time
from pathlib import Path
import yaml

settings = yaml.safe_load(Path("params.yaml").read_text())
stage = sys.argv[1]
out = Path("runs") / stage
out.mkdir(parents=True, exist_ok=True)
print(f"this is {stage}", flush=True)
if stage == "ingest":
    files = sorted(path.name for path in Path(settings["ingest"]["source"]).iterdir())
    (out / "numbers.json").write_text(json.dumps([settings["seed"], files]))
if stage == "train":
    size = settings["train"]["batch_size"]
    if size == 665:
        print("srpo: error: the loss is NaN at step 7", file=sys.stderr)
        sys.exit(4)
    if size == 1000:
        Path(os.environ["SRPO_HOME"], "pid").write_text(f"{os.getpid()}\\n")
        time.sleep(300)
    (out / "weights.txt").write_text(f"{size} images on {Path('runs/ingest/numbers.json').read_text()}")
if stage == "gate":
    passed = settings["gate"]["resamples"] > 2000
    decision = {"passed": passed, "verdict": "passed" if passed else "refused", "reason": "as the resamples say."}
    (out / "decision.json").write_text(json.dumps(decision))
if stage == "report":
    (out / "report.html").write_text("<p>" + Path("runs/gate/decision.json").read_text())
if stage == "quantize":
    (out / "model.bin").write_bytes(b"weights")
"""


def git(cwd: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    return subprocess.run(
        ["git", *identity, *arguments], cwd=cwd, check=True, capture_output=True, text=True
    ).stdout.strip()


def make_standin(path: Path) -> Path:
    """Write the small repository to `path` and commit it."""
    path.mkdir()
    shutil.copytree(ROOT / "profiles", path / "profiles")
    shutil.copytree(ROOT / "assets/tiny/hpd", path / "assets/tiny/hpd")
    shutil.copy(ROOT / "params.yaml", path)
    shutil.copy(ROOT / ".gitignore", path)
    shutil.copy(ROOT / ".dvcignore", path)
    (path / ".dvc").mkdir()
    for name in ("config", ".gitignore"):
        shutil.copy(ROOT / ".dvc" / name, path / ".dvc")
    (path / "dvc.yaml").write_text(DVC_YAML)
    (path / "steps.py").write_text(STEPS)
    git(path, "init", "--quiet", "--initial-branch=main")
    git(path, "add", ".")
    git(path, "commit", "--quiet", "-m", "stand-in")
    return path


def keep_stages(path: Path, *names: str) -> None:
    """Remove all other stages, for tests of what happens before and after them: each stage takes a second."""
    graph = yaml.safe_load((path / "dvc.yaml").read_text())
    removed = tuple(f"runs/{name}" for name in graph["stages"] if name not in names)
    graph["stages"] = {name: graph["stages"][name] for name in names}
    for stage in graph["stages"].values():
        stage["deps"] = [name for name in stage["deps"] if not name.startswith(removed)]
    (path / "dvc.yaml").write_text(yaml.safe_dump(graph, sort_keys=False))
    git(path, "commit", "--quiet", "--all", "-m", "fewer stages")
