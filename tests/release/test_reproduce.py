"""`srpo reproduce` runs a release's stages again from its revision; the stages here are a few lines each."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml
from standin import git

from srpo_core.cli.release import reproduce as command
from srpo_core.errors import ConfigError, StageError
from srpo_core.release import reproduce as module
from srpo_core.release.provenance import environment, git_state
from srpo_core.release.reproduce import reproduce
from srpo_core.storage import content_digest, open_store
from srpo_core.storage.manifest import encode_sealed

DVC_YAML = """\
stages:
  gate:
    desc: decides
    cmd: python steps.py gate
    deps: [steps.py, base]
    params: [seed]
    metrics: [runs/gate/decision.json]
  quantize:
    desc: writes the files
    cmd: python steps.py quantize
    deps: [steps.py, runs/gate/decision.json]
    outs: [runs/quantize]
    meta: {needs: a passed decision}
"""

# SHIFT stands for another processor, or for code that does something else
STEPS = """\
import json, os, sys
from pathlib import Path
import yaml

shift = float(os.environ.get("SHIFT", "0"))
gain = 0.2 + yaml.safe_load(Path("params.yaml").read_text())["seed"] + shift
if sys.argv[1] == "gate":
    if shift > 100:
        print("srpo: error: the gain is NaN", file=sys.stderr)
        sys.exit(4)
    rule = {"name": "style_gained", "value": gain, "low": 0.1, "high": 0.3, "verdict": "holds"}
    decision = {"passed": True, "verdict": "passed", "reason": "the rule holds.", "rules": [rule]}
    Path("runs/gate").mkdir(parents=True, exist_ok=True)
    Path("runs/gate/decision.json").write_text(json.dumps(decision))
else:
    weights = Path("runs/quantize/formats/bf16/model-bf16.safetensors")
    weights.parent.mkdir(parents=True, exist_ok=True)
    weights.write_text(f"weights {gain}")
    proof = {"formats": {"bf16": {"relative_error": 0.01 * (1 + shift), "psnr": None}}}
    Path("runs/quantize/proof.json").write_text(json.dumps(proof))
"""

PARAMS = {
    "seed": 1,
    "model": {"path": "base"},
    "resources": {"use_gpu": False},
    "release": {"name": "tiny", "license_files": ["LICENSE"]},
}


def write_project(root):
    """Write and commit a project, then change its code and settings without a commit, and run it."""
    files = {
        "dvc.yaml": DVC_YAML,
        "steps.py": STEPS,
        "params.yaml": yaml.safe_dump(PARAMS),
        "base/vae.bin": "the base's decoder",
        "LICENSE": "terms",
        ".gitignore": "/runs\n/.srpo\n/.dvc/cache\n/.dvc/tmp\n/.dvc/site\n",
        ".dvc/config": "[core]\n    analytics = false\n",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    git(root, "init", "--quiet", "--initial-branch=main")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "-m", "a project")
    (root / "params.yaml").write_text(yaml.safe_dump(PARAMS | {"seed": 0}))
    (root / "steps.py").write_text(STEPS.replace("weights {gain}", "the weights {gain}"))
    subprocess.run([sys.executable, "-m", "dvc", "repro", "--quiet"], cwd=root, check=True)


def publish(root, store):
    """Publish the project's run as `publish` does, without model card and workflows."""
    paths = {
        "tiny-bf16.safetensors": "runs/quantize/formats/bf16/model-bf16.safetensors",
        "vae.bin": "base/vae.bin",
        "decision.json": "runs/gate/decision.json",
        "proof.json": "runs/quantize/proof.json",
    } | {name: name for name in ("params.yaml", "dvc.yaml", "dvc.lock", "LICENSE")}
    files = {name: root / path for name, path in paths.items()}
    digests = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    entries = {name: {"sha256": digests[name], "bytes": path.stat().st_size} for name, path in files.items()}
    version = f"tiny-{digests['dvc.lock'][:12]}"
    manifest = {
        "version": version,
        "files": entries,
        "content": content_digest(entries, entries),
        "git": git_state(root),
        "environment": environment(root),
        "decision": json.loads(files["decision.json"].read_text()),
        "proof": json.loads(files["proof.json"].read_text()),
    }
    store.publish(version, files, manifest)
    return version


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project and a store with its release: (root, store, version)."""
    root = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("SRPO_HOME", "GIT_DIR", "GIT_INDEX_FILE"):
            patch.delenv(name, raising=False)
        patch.setenv("DVC_NO_ANALYTICS", "1")
        patch.setenv("DVC_SITE_CACHE_DIR", str(root / ".dvc/site"))
        write_project(root)
        store = open_store(str(tmp_path_factory.mktemp("published") / "store"))
        yield root, store, publish(root, store)


def from_another_processor(store, version):
    """Record another processor in the manifest, as if the release had been published elsewhere."""
    path = store.local(version) / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["environment"]["processor"] = "another one"
    path.write_bytes(encode_sealed(manifest))


def test_a_run_of_the_revision_with_its_uncommitted_changes_gives_the_same_bytes(
    project, tmp_path, monkeypatch
):
    """What other runs have left in SRPO_HOME or SRPO_SHARED is not reused."""
    root, store, version = project
    lines, seen, honest = [], [], module.run_again

    def watched(workspace, *arguments):
        seen.append(workspace.environment())
        Path(seen[-1]["SRPO_SHARED"]).mkdir(parents=True, exist_ok=True)
        honest(workspace, *arguments)

    monkeypatch.setattr(module, "run_again", watched)
    monkeypatch.setenv("SRPO_SHARED", str(tmp_path))
    found, workspace = reproduce(store, version, checkout=root, on_line=lines.append)
    own = {Path(environment[name]) for environment in seen for name in ("SRPO_SHARED", "SRPO_HOME")}
    assert own == {tmp_path / "reproduce" / workspace.parent.name, workspace.parent / "home"}
    assert list((tmp_path / "reproduce").iterdir()) == []
    assert (found.outcome, found.other_bytes) == ("same bytes", ())
    assert found.reason == "2 outputs of the stages and 4 files of the release"
    assert lines[0] == "gate: decides"
    assert (workspace / "runs/quantize/formats/bf16/model-bf16.safetensors").read_text() == "the weights 0.2"
    assert workspace.is_relative_to(root / ".srpo/runs")


def test_the_command_tells_agreement_within_bounds_from_a_difference(project, monkeypatch, capsys):
    root, store, version = project
    monkeypatch.chdir(root)
    monkeypatch.setenv("SRPO_STORE", store.uri)
    monkeypatch.setenv("SHIFT", "0.01")
    with pytest.raises(typer.Exit) as ended:
        command(version)
    assert ended.value.exit_code == 1
    out = capsys.readouterr().out
    assert "outcome  different: this machine is of the same kind" in out

    from_another_processor(store, version)
    command(version)
    out = capsys.readouterr().out
    assert "outcome  within bounds: all 3 figures agree; another processor" in out
    assert "agrees   style_gained: 0.2 → 0.21 (0.100 to 0.300)" in out
    assert "bytes    runs/gate/decision.json has other bytes" in out

    monkeypatch.setenv("SHIFT", "0.2")
    with pytest.raises(typer.Exit) as ended:
        command(version)
    assert ended.value.exit_code == 1
    out = capsys.readouterr().out
    assert "outcome  different: 2 of 3 figures are out of bounds, first style_gained" in out
    assert "differs  style_gained: 0.2 → 0.4 (0.100 to 0.300)" in out
    assert "differs  bf16 output error: 0.01 → 0.012 (±10%)" in out


def test_a_stage_that_fails_is_reported_by_its_own_error(project, monkeypatch):
    root, store, version = project
    monkeypatch.setenv("SHIFT", "1000")
    with pytest.raises(StageError, match=r"^stage gate: the gain is NaN$"):
        reproduce(store, version, checkout=root, on_line=lambda _: None)


def test_a_release_without_a_revision_or_with_an_unknown_one_is_refused(project, tmp_path):
    root, store, version = project
    path = store.local(version) / "manifest.json"
    before = path.read_bytes()
    try:
        for revision, fault in ((None, "names no revision"), ("0" * 40, "has no revision")):
            manifest = json.loads(before)
            manifest["git"]["revision"] = revision
            path.write_bytes(encode_sealed(manifest))
            with pytest.raises(ConfigError, match=fault):
                reproduce(store, version, checkout=root, on_line=lambda _: None)
    finally:
        path.write_bytes(before)
