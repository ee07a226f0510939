"""How fast, and in how much memory, is a checkpoint written in each format? Whole processes, imports included.

python benchmarks/quantize.py                       every row, 3.19 GB of bfloat16
python benchmarks/quantize.py --size 9 --format fp8_e4m3fn

Makes a FLUX-shaped checkpoint (width 3072, random weights) of the given size in --work, quantizes it by
`srpo quantize` and, as the yardstick, by safetensors' load_file / .to(float8_e4m3fn) / save_file; prints one
JSON line per run and deletes what it made.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from srpo_core.quantizers.flux_checkpoint import CONFIG, WEIGHTS
from srpo_core.quantizers.key_map import Architecture
from srpo_core.quantizers.weight_files import Entry, HashedFile, safetensors_head

HIDDEN, HEAD, JOINT, POOLED, CHANNELS, TIME = 3072, 128, 4096, 768, 64, 256
# gigabytes in bfloat16 of a double block, a single block and the rest
DOUBLE, SINGLE, REST = 0.6796, 0.2832, 0.131
YARDSTICK = "load_file/.to/save_file"
FORMATS = ("fp8_e4m3fn", "fp8_e4m3fn_scaled", "q8_0", "bf16_single", "bf16")
LOAD_CAST_SAVE = """
import sys, torch
from safetensors.torch import load_file, save_file
state = load_file(sys.argv[1])
save_file({name: value.to(torch.float8_e4m3fn) for name, value in state.items()}, sys.argv[2])
"""
MOVE_KEYS = """
import sys
from srpo_core.quantizers.conversion import Format, convert
from srpo_core.quantizers.encodings import BF16
from srpo_core.quantizers.flux_checkpoint import open_flux
from pathlib import Path
one_file = Format(lambda name, shape: BF16, "safetensors")
convert(open_flux(Path(sys.argv[1])), {"bf16": one_file}, Path(sys.argv[2]), stem="model")
"""


def main() -> None:
    """Parse the command line, make the checkpoint, run every row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=float, default=3.19, help="GB of the bfloat16 checkpoint")
    parser.add_argument("--format", action="append", choices=FORMATS, help="only these rows")
    parser.add_argument("--no-yardstick", action="store_true", help="leave the usual way out")
    parser.add_argument("--work", type=Path, help="directory with space for twice the size")
    arguments = parser.parse_args()
    with TemporaryDirectory(prefix="quantize-", dir=arguments.work) as scratch:
        source = Path(scratch) / "source"
        size = make_checkpoint(source, arguments.size)
        if not arguments.no_yardstick:
            show(
                YARDSTICK,
                size,
                measure(["-c", LOAD_CAST_SAVE, source / WEIGHTS, Path(scratch) / "yardstick"]),
            )
            (Path(scratch) / "yardstick").unlink()
        for name in arguments.format or FORMATS:
            out = Path(scratch) / "out"
            show(name, size, measure(command(name, source, out)))
            shutil.rmtree(out)


def command(name: str, source: Path, out: Path) -> list[str | Path]:
    """Arguments of Python for one row. bf16_single: the BFL-named file alone, without the diffusers directory."""
    if name == "bf16_single":
        return ["-c", MOVE_KEYS, source, out]
    return ["-m", "srpo_core", "quantize", source, "--format", name, "--out", out]


def measure(arguments: list[str | Path]) -> dict[str, float]:
    """Run Python and return wall seconds, CPU seconds and the peak of its memory in GB."""
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
    """Write a diffusers directory of about so many GB in bfloat16; returns the bytes of its weights."""
    single = max(1, round((gigabytes - REST) / (SINGLE + DOUBLE / 3)))
    double = max(1, round((gigabytes - REST - single * SINGLE) / DOUBLE))
    architecture = Architecture(double, single, guidance=True)
    shapes = {
        f"{name}": shape
        for joint in architecture.joints()
        for name, shape in shapes_of(joint.bfl, joint.diffusers)
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
        "num_attention_heads": HIDDEN // HEAD,
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


def shapes_of(bfl: str, diffusers: tuple[str, ...]) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the diffusers tensors of one BFL tensor of a FLUX.1."""
    layer, _, kind = bfl.rpartition(".")
    mlp = 4 * HIDDEN
    rows, columns = {
        "img_in": (HIDDEN, CHANNELS),
        "txt_in": (HIDDEN, JOINT),
        "in_layer": (HIDDEN, POOLED if "vector" in layer else TIME),
        "lin": (HIDDEN * (3 if "single" in layer else 6), HIDDEN),
        "0": (mlp, HIDDEN),
        "2": (HIDDEN, mlp),
        "linear2": (HIDDEN, HIDDEN + mlp),
        "linear": (CHANNELS, HIDDEN),
        "1": (2 * HIDDEN, HIDDEN),
    }.get(layer.rpartition(".")[2], (HIDDEN, HIDDEN))
    if kind == "scale":
        return [(diffusers[0], (HEAD,))]
    heights = [mlp if name.split(".")[-2] == "proj_mlp" else rows for name in diffusers]
    return [
        (name, (height, columns) if kind == "weight" else (height,))
        for name, height in zip(diffusers, heights, strict=True)
    ]


if __name__ == "__main__":
    main()
