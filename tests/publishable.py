"""Make a small project that can be published: reproduced by DVC, with tiny base, checkpoint, formats and decision."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from near_base import write_near_base
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
BASE = Path("assets/tiny/family/base")
FORMATS = ("bf16", "fp8_e4m3fn", "q8_0")

DVC_YAML = """\
stages:
  embed:
    cmd: "true"
    outs: [runs/embed]
  select:
    cmd: "true"
    outs: [runs/select]
  evaluate:
    cmd: "true"
    outs: [runs/evaluate/figures.parquet]
    metrics: [runs/evaluate/summary.json]
  gate:
    cmd: "true"
    deps: [runs/select/selection.json, runs/evaluate/figures.parquet]
    params: [seed, gate]
    metrics: [runs/gate/decision.json]
  report:
    cmd: "true"
    deps: [runs/gate/decision.json]
    params: [report]
    outs: [runs/report]
  quantize:
    cmd: "true"
    deps: [assets/tiny/family/base, runs/gate/decision.json]
    params: [seed, model, quantize]
    outs: [runs/quantize]
"""

PROMPTS = ["tiger face", "red apple", *(f"subject {number}" for number in range(22))]
METRICS = ["judge_wanted", "relative_reward"]
GAIN = 0.31
RULE = {
    "metric": "judge_wanted",
    "against": "base",
    "compare": "difference",
    "side": "at_least",
    "margin": 0.05,
    "severity": "refuse",
    "meaning": "a judge sees more of the wanted style",
}


def write_settings(path):
    """Write the committed settings with few images and with limits that weights with noise of 2e-4 satisfy."""
    settings = yaml.safe_load((ROOT / "params.yaml").read_text())
    loose = {"max_relative_error": 0.2, "min_psnr": 0, "min_completeness": 0, "min_gain_kept": -1e9}
    settings["quantize"] |= {"num_prompts": 2, "formats": dict.fromkeys(FORMATS, loose)}
    settings["generate"]["num_inference_steps"] = 16
    settings["evaluate"] |= {"num_prompts": len(PROMPTS), "seeds_per_prompt": 1, "metrics": METRICS}
    settings["select"] |= {"num_prompts": 3, "keep": {}}
    settings["gate"] |= {"resamples": 2000, "rules": {"style_gained": RULE}}
    path.write_text(yaml.safe_dump(settings, sort_keys=False))


def record_run(root):
    """Write dvc.lock and fill the cache as `dvc repro` would, for the outputs that exist."""
    environment = os.environ | {"DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(root / ".dvc/site")}
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "commit", "--force", "--quiet"],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def write_figures():
    """Write encoded prompts, figures in which the aligned model gains `GAIN` on average, and select's result."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from srpo_core import artifacts
    from srpo_core.config import load_settings
    from srpo_core.models import encode_prompts
    from srpo_core.models.embeddings import write_embeddings

    encoded = encode_prompts(load_settings().model, PROMPTS, batch_size=len(PROMPTS))
    write_embeddings("test", PROMPTS, ["x"] * len(PROMPTS), encoded)
    rows = [
        {"model": model, "prompt": prompt, "style": "x", "seed": 0, "metric": metric, "value": value}
        for number, prompt in enumerate(PROMPTS)
        for model, value in (("base", 0.0), ("aligned", GAIN + (0.05 if number % 2 else -0.05)))
        for metric in METRICS
    ]
    artifacts.FIGURES.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), artifacts.FIGURES)
    means = {"base": dict.fromkeys(METRICS, 0.0), "aligned": dict.fromkeys(METRICS, GAIN)}
    artifacts.write_json(artifacts.EVALUATION_SUMMARY, {"means": means})
    write_selection(encoded)


def write_selection(encoded):
    """Write encoded validation prompts, scores of base and step 10, and the selection that follows from them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from srpo_core import artifacts
    from srpo_core.config import load_settings
    from srpo_core.models.embeddings import write_embeddings
    from srpo_core.selection.choice import recomputed_selection

    settings, names, styles = load_settings(), PROMPTS[:3], ["x"] * 3
    write_embeddings("validation", names, styles, encoded[:3])
    rows = [
        {"step": step, "prompt": name, "style": "x", "seed": k, "judge_wanted": 0.4 + gain}
        for step, gain in ((0, 0.0), (10, GAIN))
        for name in names
        for k in range(settings.select.seeds_per_prompt)
    ]
    artifacts.SELECT_SCORES.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, artifacts.SELECT_SCORES)
    artifacts.write_json(
        artifacts.SELECTION,
        recomputed_selection(table, names, styles, [10], seed=settings.seed, select=settings.select),
    )


def run_gate():
    """Run stage gate on the figures."""
    from srpo_core.config import load_settings
    from srpo_core.stages import gate

    settings = load_settings()
    gate.run(
        seed=settings.seed,
        champion=None,
        model=settings.model,
        evaluate=settings.evaluate,
        gate=settings.gate,
    )


def run_quantize():
    """Run stage quantize on the checkpoint of step 10."""
    from srpo_core.config import load_settings
    from srpo_core.stages import quantize

    settings = load_settings()
    parts = ("seed", "model", "rewards", "judge", "control_words", "generate", "quantize", "resources")
    quantize.run(**{part: getattr(settings, part) for part in parts})


def make_reproduced(root):
    """Write the project to an empty directory and commit it: base, checkpoint, formats, report, decision."""
    from srpo_core import artifacts
    from srpo_core.report.formats import FORMATS_MARK

    for name in ("base", "reward", "judge_b"):
        shutil.copytree(ROOT / BASE.parent / name, root / BASE.parent / name)
    for name in ("LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, root / name)
    write_settings(root / "params.yaml")
    (root / "dvc.yaml").write_text(DVC_YAML)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        write_figures()
        run_gate()
        artifacts.REPORT.parent.mkdir(parents=True)
        artifacts.REPORT.write_text(f"<title>report</title>{FORMATS_MARK}")
        Image.new("RGB", (8, 8), "red").save(artifacts.GRID)
        write_near_base(artifacts.step_directory(10))
        run_quantize()
    (root / ".gitignore").write_text("/runs\n/.dvc/site\n/.dvc/cache\n/.dvc/tmp\n")
    (root / ".dvc").mkdir()
    (root / ".dvc/config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    record_run(root)
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "a run"]):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *identity, *command], cwd=root, check=True)
    return root
