"""Time stage ingest on synthetic data in HPDv2's schema, and the decoding of its images.

python benchmarks/ingest.py                                    50,000 to 800,000 records: CPU and wall seconds, peak memory,
                                                               and the linear fit: per 100,000 records, and at 0
python benchmarks/ingest.py --records 800000 --images used     only the few hundred images that a run uses; none: no archive
python benchmarks/ingest.py --records 800000 --unchanged       a second `dvc repro`, which has nothing to do
python benchmarks/ingest.py --decode 10000 --side 512          images per second beside those of a plain pool

Each size is one process. A data set has as many images and prompts per record as HPDv2: train.json with pairs, test.json
with 9 ranked images per record, four benchmark lists, and small JPEGs, all different, in train.tar and test.tar. It is
made in --work and deleted. Every image is checked (`ingest.check_images: all`), unless --images says otherwise.

--unchanged runs `dvc repro --single-item ingest` twice for each size, in a copy of this project's code with a cache of its
own. The figures are those of the second run.

--decode measures `decode_images` in turn with a pool of processes, each of which only decodes its share of the images
with Pillow: that is what the cores can do. Both are the median of --repeats.
"""

import argparse
import io
import json
import os
import random
import resource
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import get_context
from operator import attrgetter
from pathlib import Path
from shutil import copyfile, copytree, ignore_patterns
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np

from srpo_core.config import PARAMS_FILE, load_settings, write_settings
from srpo_core.data.decoded_images import decode_images
from srpo_core.data.images import open_images
from srpo_core.runtime.cores import available_cores
from srpo_core.runtime.dvc_yaml import argument_name, read_stages
from srpo_core.runtime.telemetry import quiet_environment

ROOT: Final = Path(__file__).resolve().parents[1]
STYLES: Final = ("anime", "concept-art", "paintings", "photo")
UNCHANGED: Final = "didn't change, skipping"  # what DVC prints
# of HPDv2: 430,060 images and 107,515 prompts for 798,090 pairs
IMAGES_PER_RECORD: Final = 0.54
RECORDS_PER_PROMPT: Final = 6.2
TEST_RECORDS, RANKED, BENCHMARK_PROMPTS = 400, 9, 800
DIFFERENT: Final = 100  # images; the others have the pixels of one of these and another comment
WORDS: Final = (
    "red",
    "old",
    "cat",
    "city",
    "under",
    "rain",
    "portrait",
    "of",
    "a",
    "robot",
    "trees",
    "oil",
    "on",
)


def main() -> None:
    """Print a JSON line per size and one of the fit, or one of the decoding."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, nargs="+", default=[50_000, 200_000, 800_000])
    parser.add_argument("--images", choices=("all", "used", "none"), default="all", help="which to check")
    parser.add_argument("--unchanged", action="store_true", help="time a second run on the same data instead")
    parser.add_argument(
        "--decode", type=int, metavar="IMAGES", help="time the decoding of so many images instead"
    )
    parser.add_argument("--side", type=int, help="of the images in pixels; 64, or 512 for --decode")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--work", type=Path, help="directory with space for the data")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.unchanged and arguments.images == "none":
        parser.error("--unchanged: give --images all or --images used")
    if arguments.run is not None:
        print(json.dumps(measured_run(arguments.run, arguments.images)))
        return
    with TemporaryDirectory(prefix="ingest-", dir=arguments.work) as work:
        if arguments.decode is not None:
            print(
                json.dumps(decoding(Path(work), arguments.decode, arguments.side or 512, arguments.repeats))
            )
            return
        measure = unchanged_run if arguments.unchanged else in_own_process
        lines = []
        for number in arguments.records:
            lines.append(measure(Path(work) / str(number), number, arguments.side or 64, arguments.images))
            print(json.dumps(lines[-1]), flush=True)
        if len(lines) > 1 and not arguments.unchanged:
            print(json.dumps(linear_fit(lines)))


def in_own_process(work: Path, num_records: int, side: int, images: str) -> dict[str, Any]:
    """Make data of a size, run ingest on them in a process of its own, and return its figures."""
    num_images = make_hpd(work / "hpd", num_records, side)
    command = [sys.executable, __file__, "--run", str(work), "--images", images]
    output = subprocess.run(command, cwd=work, check=True, stdout=subprocess.PIPE, text=True).stdout
    figures: dict[str, Any] = json.loads(output.splitlines()[-1])
    return {"records": num_records, "images": num_images if images == "all" else images, **figures}


def unchanged_run(work: Path, num_records: int, side: int, images: str) -> dict[str, Any]:
    """Make data of a size, run ingest on them by DVC, and return the CPU and wall seconds of a second run.

    Raises:
        RuntimeError: the second run ran the stage.
    """
    num_images = make_hpd(work / "hpd", num_records, side)
    copy_project(work)
    changed = {"source": "hpd", "check_images": "all" if images == "all" else "used"}
    write_settings(work, profile=None, patch={"ingest": changed})
    _dvc(work, "init", "--no-scm", "--quiet")
    repro = ("repro", "--single-item", "ingest")
    _dvc(work, *repro)
    began, before = time.perf_counter(), os.times()
    output = _dvc(work, *repro)
    wall, after = time.perf_counter() - began, os.times()
    if UNCHANGED not in output:
        raise RuntimeError(f"a second 'dvc repro' did not find ingest unchanged: {output}")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {
        "records": num_records,
        "images": num_images,
        "unchanged_cpu_seconds": round(cpu, 2),
        "unchanged_wall_seconds": round(wall, 2),
    }


def copy_project(target: Path) -> None:
    """Copy what DVC and ingest need of this project: code, stages and settings."""
    target.mkdir(parents=True, exist_ok=True)
    for name in ("srpo_core", "profiles"):
        copytree(ROOT / name, target / name, ignore=ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", PARAMS_FILE, "requirements.lock"):
        copyfile(ROOT / name, target / name)


def _dvc(work: Path, *arguments: str) -> str:
    environment = {
        **os.environ,
        **quiet_environment(),
        "PYTHONPATH": str(work),
        "SRPO_HOME": str(work / ".srpo"),
        "DVC_SITE_CACHE_DIR": str(work / ".srpo/dvc"),
    }
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(
        command, cwd=work, env=environment, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def measured_run(work: Path, images: str) -> dict[str, float]:
    """Run ingest on work/hpd in this process; return CPU and wall seconds, imports included, and the peak in GB."""
    from srpo_core.stages.ingest import run

    os.chdir(work)
    run(**ingest_arguments(work / "hpd", images))
    times = os.times()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {
        "cpu_seconds": round(times.user + times.system, 2),
        "wall_seconds": round(time.time() - _started_at(), 2),
        "peak_rss_gb": round(peak, 3),
    }


def _started_at() -> float:
    import psutil

    return psutil.Process().create_time()


def ingest_arguments(source: Path, images: str) -> dict[str, Any]:
    """Return the arguments of the stage: the preset tiny with this source.

    images: check all of them, only those that later stages of this preset use, or none because no stage uses any.
    """
    settings = load_settings(ROOT / "profiles/tiny.yaml")
    changed = {"source": str(source), "check_images": "all" if images == "all" else "used"}
    settings = settings.model_copy(update={"ingest": settings.ingest.model_copy(update=changed)})
    definition = read_stages(ROOT)["ingest"]
    arguments = {argument_name(key): attrgetter(key)(settings) for key in definition.params}
    unused = {"check_reward_max_pairs": None, "evaluate_real_images": 0}
    return arguments | unused if images == "none" else arguments


def make_hpd(target: Path, num_records: int, side: int) -> int:
    """Write a data set with `num_records` pairs to train on and return its number of images."""
    draw = random.Random(0)
    (target / "benchmark").mkdir(parents=True)
    num_images = max(2, int(num_records * IMAGES_PER_RECORD))
    prompts = [prompt(draw, f"train {number}") for number in range(int(num_records / RECORDS_PER_PROMPT) + 1)]
    train = (
        {
            "human_preference": draw.choice(([0, 1], [1, 0])),
            "prompt": draw.choice(prompts),
            "file_path": [f"{name:08d}.jpg" for name in draw.sample(range(num_images), 2)],
        }
        for _ in range(num_records)
    )
    test = (
        {
            "prompt": prompt(draw, f"test {number}"),
            "image_path": [f"{number * RANKED + rank:08d}.jpg" for rank in range(RANKED)],
            "rank": draw.sample(range(RANKED), RANKED),
            "raw_annotations": [
                {"rank": draw.sample(range(RANKED), RANKED), "user_hash": f"user {user}"} for user in range(5)
            ],
        }
        for number in range(TEST_RECORDS)
    )
    _write_list(target / "train.json", train)
    _write_list(target / "test.json", test)
    for style in STYLES:
        entries = [prompt(draw, f"{style} {number}") for number in range(BENCHMARK_PROMPTS)]
        (target / f"benchmark/{style}.json").write_text(json.dumps(entries), encoding="utf-8")
    write_images(target / "train.tar", num_images, side, 0)
    write_images(target / "test.tar", TEST_RECORDS * RANKED, side, num_images)
    return num_images + TEST_RECORDS * RANKED


def prompt(draw: random.Random, unique: str) -> str:
    """Make a prompt of some 80 characters."""
    return f"{' '.join(draw.choices(WORDS, k=14))}, {unique}"


def _write_list(path: Path, records: Iterator[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write("[")
        for number, record in enumerate(records):
            file.write(f"{', ' if number else ''}{json.dumps(record)}")
        file.write("]")


def write_images(path: Path, count: int, side: int, first_comment: int) -> None:
    """Write a tar of different JPEGs, named by their number."""
    known = [_jpeg(number, side) for number in range(min(DIFFERENT, count))]
    with tarfile.open(path, "w") as archive:
        for number in range(count):
            content = _with_comment(known[number % len(known)], first_comment + number)
            member = tarfile.TarInfo(f"{number:08d}.jpg")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def _jpeg(seed: int, side: int) -> bytes:
    """Make an image with structure and some noise: a 512 x 512 one has about 100 kB."""
    from PIL import Image

    random_pixels = np.random.default_rng(seed)
    coarse = random_pixels.integers(0, 255, (max(1, side // 8), max(1, side // 8), 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)).astype(int)
    noisy = smooth + random_pixels.integers(-12, 12, (side, side, 3))
    file = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=88)
    return file.getvalue()


def _with_comment(jpeg: bytes, number: int) -> bytes:
    comment = f"{number:08d}".encode()
    return jpeg[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + jpeg[2:]


def linear_fit(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Fit CPU seconds and peak memory by the number of records, with least squares."""
    records = np.array([line["records"] for line in lines], dtype=float)
    slope, start = np.polyfit(records, [line["cpu_seconds"] for line in lines], 1)
    memory, base = np.polyfit(records, [line["peak_rss_gb"] for line in lines], 1)
    return {
        "cpu_seconds_per_100k": round(1e5 * float(slope), 3),
        "cpu_seconds_at_0": round(float(start), 2),
        "peak_gb_per_100k": round(1e5 * float(memory), 4),
        "peak_gb_at_0": round(float(base), 3),
    }


def decoding(work: Path, count: int, side: int, repeats: int) -> dict[str, Any]:
    """Compare the images per second of `decode_images` with those of a plain pool; see the top of this file."""
    write_images(work / "train.tar", count, side, 0)
    names = [f"{number:08d}.jpg" for number in range(count)]
    cores = available_cores()
    own, plain = [], []
    # forked before there are threads
    with get_context("fork").Pool(cores) as pool, open_images(work, "train") as stored:
        for _ in range(repeats):
            began = time.perf_counter()
            pool.starmap(_decode_share, [(work, names[worker::cores]) for worker in range(cores)], 1)
            plain.append(time.perf_counter() - began)
            began = time.perf_counter()
            sizes = [image.size for image in decode_images(stored, names, workers=cores)]
            own.append(time.perf_counter() - began)
            assert set(sizes) == {(side, side)}
    return {
        "images": count,
        "side": side,
        "cores": cores,
        "images_per_second": round(count / median(own), 1),
        "plain_pool": round(count / median(plain), 1),
        "ratio": round(median(before / after for before, after in zip(plain, own, strict=True)), 3),
        "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 3),
    }


def _decode_share(work: Path, names: Sequence[str]) -> None:
    from PIL import Image

    with open_images(work, "train") as stored:
        for name in names:
            Image.open(io.BytesIO(stored.read(name))).load()


if __name__ == "__main__":
    main()
