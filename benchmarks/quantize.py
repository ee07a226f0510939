"""Measure time and peak memory of writing a checkpoint in each format, as whole processes, imports included.

python benchmarks/quantize.py                       all rows at 3.19 GB of bfloat16, and the peak at 9 GB
python benchmarks/quantize.py --format q8_0 --larger 0

Creates a FLUX-shaped checkpoint (width 3072, random weights) of the given size in --work, quantizes it with
`srpo quantize` and, as the baseline, with safetensors' load_file / .to(float8_e4m3fn) / save_file; prints one JSON
line per run and deletes its files. Then it writes the first format from a larger checkpoint and prints both memory
peaks: they are equal if streaming works.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from srpo_core.quantizers.key_map import Architecture
from srpo_core.weights.files import CONFIG, WEIGHTS, Entry, HashedFile, safetensors_head

HIDDEN, HEAD, JOINT, POOLED, CHANNELS, TIME = 3072, 128, 4096, 768, 64, 256
# gigabytes in bfloat16 of a double block, a single block and the rest
DOUBLE, SINGLE, REST = 0.6796, 0.2832, 0.131
BASELINE = "load_file/.to/save_file"
FORMATS = ("fp8_e4m3fn", "fp8_e4m3fn_scaled", "q8_0", "bf16_single", "bf16")
LOAD_CAST_SAVE = """
import sys, torch
from safetensors.torch import load_file, save_file
state = load_file(sys.argv[1])
save_file({name: value.to(torch.float8_e4m3fn) for name, value in state.items()}, sys.argv[2])
"""


def main() -> None:
    """Parse the command line, make the checkpoint, run every row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=float, default=3.19, help="GB of the bfloat16 checkpoint")
    parser.add_argument(
        "--larger", type=float, default=9.0, help="GB of a second checkpoint, to compare the peak; 0: none"
    )
    parser.add_argument("--format", action="append", choices=FORMATS, help="only these rows")
    parser.add_argument("--no-baseline", action="store_true", help="skip the baseline")
    parser.add_argument("--work", type=Path, help="directory with space for twice the size")
    arguments = parser.parse_args()
    names = arguments.format or FORMATS
    peaks = rows(arguments.size, names, arguments.work, baseline=not arguments.no_baseline)[:1]
    if arguments.larger:
        peaks += rows(arguments.larger, names[:1], arguments.work, baseline=False)
        sizes, resident = zip(*peaks, strict=True)
        print(json.dumps({"row": f"peak of {names[0]}", "input_gb": sizes, "peak_rss_gb": resident}))


def rows(
    gigabytes: float, names: Sequence[str], work: Path | None, *, baseline: bool
) -> list[tuple[float, float]]:
    """Print one row per format for a checkpoint of this size; returns (input GB, peak GB) of each."""
    peaks = []
    if work is not None:
        work.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="quantize-", dir=work) as scratch:
        source, out = Path(scratch) / "source", Path(scratch) / "out"
        size = make_checkpoint(source, gigabytes)
        if baseline:
            show(BASELINE, size, measure(["-c", LOAD_CAST_SAVE, source / WEIGHTS, out]))
            out.unlink()
        for name in names:
            figures = measure(["-m", "srpo_core", "quantize", source, "--format", name, "--out", out])
            show(name, size, figures)
            peaks.append((round(size / 1e9, 3), round(figures["peak_rss_gb"], 3)))
            shutil.rmtree(out)
    return peaks


def measure(arguments: list[str | Path]) -> dict[str, float]:
    """Run Python; returns wall seconds, CPU seconds and peak memory in GB."""
    begun = time.perf_counter()
    process = subprocess.Popen([sys.executable, *map(str, arguments)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{arguments[:4]} failed with {process.returncode}")
    return {
        "wall_s": time.perf_counter() - begun,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "system_s": usage.ru_stime,
        "peak_rss_gb": usage.ru_maxrss * 1024 / 1e9,
    }


def show(name: str, size: int, figures: dict[str, float]) -> None:
    """Print one row."""
    row = {"row": name, "input_gb": size / 1e9, "gb_per_cpu_s": size / 1e9 / figures["cpu_s"]} | figures
    print(
        json.dumps(
            {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}
        )
    )


def make_checkpoint(directory: Path, gigabytes: float) -> int:
    """Write a diffusers directory of about `gigabytes` GB in bfloat16; returns the size of its weights in bytes."""
    single = max(1, round((gigabytes - REST) / (SINGLE + DOUBLE / 3)))
    double = max(1, round((gigabytes - REST - single * SINGLE) / DOUBLE))
    return write_checkpoint(directory, double, single)


def write_checkpoint(directory: Path, double: int, single: int, *, hidden: int = HIDDEN) -> int:
    """Write a diffusers directory with these numbers of blocks in bfloat16; returns the size of its weights in bytes."""
    architecture = Architecture(double, single, guidance=True)
    shapes = {
        name: shape
        for joint in architecture.joints()
        for name, shape in shapes_of(joint.bfl, joint.diffusers, hidden)
    }
    entries = [Entry(name, "BF16", shape, 2 * int(np.prod(shape))) for name, shape in sorted(shapes.items())]
    directory.mkdir(parents=True)
    config = {
        "_class_name": "FluxTransformer2DModel",
        "attention_head_dim": HEAD,
        "axes_dims_rope": [16, 56, 56],
        "guidance_embeds": True,
        "in_channels": CHANNELS,
        "joint_attention_dim": JOINT,
        "num_attention_heads": hidden // HEAD,
        "num_layers": double,
        "num_single_layers": single,
        "pooled_projection_dim": POOLED,
    }
    (directory / CONFIG).write_text(json.dumps(config))
    values = np.random.default_rng(0).standard_normal(1 << 22, dtype=np.float32) * 0.02
    pool = (values.view(np.uint32) >> 16).astype(np.uint16)
    file = HashedFile(directory / WEIGHTS)
    file.write(safetensors_head(entries, {"format": "pt"}))
    for entry in entries:
        left = entry.num_bytes // 2
        while left:
            file.write(pool[: min(left, pool.size)])
            left -= min(left, pool.size)
    file.close(sync=True)
    return sum(entry.num_bytes for entry in entries)


def shapes_of(bfl: str, diffusers: tuple[str, ...], hidden: int) -> list[tuple[str, tuple[int, ...]]]:
    """List names and shapes of the diffusers tensors of one BFL tensor in a FLUX of this width."""
    layer, _, kind = bfl.rpartition(".")
    mlp = 4 * hidden
    height, columns = {
        "img_in": (hidden, CHANNELS),
        "txt_in": (hidden, JOINT),
        "in_layer": (hidden, POOLED if "vector" in layer else TIME),
        "lin": (hidden * (3 if "single" in layer else 6), hidden),
        "0": (mlp, hidden),
        "2": (hidden, mlp),
        "linear2": (hidden, hidden + mlp),
        "linear": (CHANNELS, hidden),
        "1": (2 * hidden, hidden),
    }.get(layer.rpartition(".")[2], (hidden, hidden))
    if kind == "scale":
        return [(diffusers[0], (HEAD,))]
    heights = [mlp if name.split(".")[-2] == "proj_mlp" else height for name in diffusers]
    return [
        (name, (height, columns) if kind == "weight" else (height,))
        for name, height in zip(diffusers, heights, strict=True)
    ]


if __name__ == "__main__":
    main()
