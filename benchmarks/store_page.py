"""Measure how long the page of a store takes to write, and make a store and a screenshot to look at.

    python benchmarks/store_page.py --versions 500             # a directory
    python benchmarks/store_page.py --versions 500 --bucket    # a bucket of moto in this process
    python benchmarks/store_page.py --versions 30 --store DIR --screenshot docs/registry.png

It prints a JSON object. The versions have the rules of params.yaml with figures that this file invents, and the images of
docs/grid.png; a version in 40 is damaged, and production moved now and then.
"""

import argparse
import hashlib
import json
import random
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from store import bucket_of_moto, counted_requests

from srpo_core.config import load_settings
from srpo_core.release.store_page import rebuild_page
from srpo_core.runtime.costs import RunCost, StageCost
from srpo_core.storage import MANIFEST, PAGE, Store, content_digest, open_store, version_key
from srpo_core.storage.manifest import alias_key, encode_sealed

ROOT = Path(__file__).resolve().parents[1]
MODEL = "tiny"
FIRST = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
DAMAGED_EACH, MOVED_EACH = 40, 7
REASONS = ("better style, looked at the grid", "weekly run", "colours of the last one were too strong")
WIDTH, HEIGHT = 1240, 1640


SETTINGS: Final = load_settings(ROOT / "params.yaml")
CHANGED_OF, LEFT_OUT_OF = (9, 5), (6, 4)  # a version in so many, by the rest of its number


def version_of(number: int) -> str:
    """Return the name of a version."""
    return f"{MODEL}-{hashlib.sha256(str(number).encode()).hexdigest()[:12]}"


def rules_of(number: int, *, against_champion: bool) -> list[dict[str, Any]]:
    """Invent the figures of every rule of params.yaml for one version: they drift slowly, with noise."""
    chance = random.Random(number)
    rules = []
    for place, (name, rule) in enumerate(SETTINGS.gate.rules.items()):
        entry = rule.model_dump(mode="json") | {
            "name": name,
            "confidence": 0.95,
            "passed": True,
            "reason": rule.meaning,
        }
        if rule.against == "champion" and not against_champion:
            entry |= dict.fromkeys(("value", "low", "high")) | {"verdict": "does not apply"}
        else:
            neutral = {"ratio": 1.0, "factor": 1.0, "win_rate": 0.5}.get(rule.compare, 0.0)
            room = abs(rule.margin - neutral) or 0.1
            better = {"at_least": 1.0, "at_most": -1.0, "within": 0.0}[rule.side]
            base = neutral if rule.side == "within" else rule.margin + better * room * 0.7
            value = base + room * (0.15 * chance.gauss(0, 1) + 0.1 * ((number + place) % 50) / 50)
            spread = room * chance.uniform(0.12, 0.3)
            entry |= {"value": value, "low": value - spread, "high": value + spread, "verdict": "holds"}
        rules.append(entry)
    return rules


def manifest_of(number: int, files: dict[str, bytes]) -> dict[str, Any]:
    """Return the manifest of one version."""
    digest = hashlib.sha256(f"code {number // 4}".encode()).hexdigest()
    entries = {
        name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in files.items()
    }
    champion = production_before(number)
    chance = random.Random(-number)
    kept = {"bf16": 0.99, "fp8_e4m3fn": 0.91, "q8_0": 0.98}
    return {
        "version": version_of(number),
        "created_at": (FIRST + timedelta(hours=13 * number)).isoformat(timespec="seconds"),
        "files": entries,
        "content": content_digest(entries, entries),
        "formats": {name: [] for name in kept},
        "git": {
            "revision": digest[:40],
            "diff": "+ a line\n" * 100 if number % CHANGED_OF[0] == CHANGED_OF[1] else None,
            "untracked": [],
        },
        "decision": {
            "passed": True,
            "verdict": "passed",
            "reason": "on 1,296 image pairs of 324 test prompts all rules hold: a judge that was never trained against "
            "finds more of the wanted style than before; the images still show what the prompts ask for.",
            "rules": rules_of(number, against_champion=champion is not None),
        },
        "proof": {
            "formats": {
                name: {"gain_kept": share - chance.uniform(0, 0.03), "psnr": 30.0, "relative_error": 4e-3}
                for name, share in kept.items()
            },
            "refused": {"q4_0": {"refused": ["12.0 dB to bf16, at least 20"]}}
            if number % LEFT_OUT_OF[0] == LEFT_OUT_OF[1]
            else {},
        },
        "evaluation": {
            "champion": champion,
            "means": {"base": {"x" * 20 + str(one): 0.5 for one in range(300)}},
        },
        "lineage": {
            "data": {"name": "data/hpd", "md5": hashlib.sha256(f"data {number // 11}".encode()).hexdigest()},
            "base": {"name": SETTINGS.release.base_model, "md5": None},
            "rewards": [{"name": one.path, "md5": None, "weight": one.weight} for one in SETTINGS.rewards],
        },
        "cost": cost_of(number),
    }


def cost_of(number: int) -> dict[str, Any]:
    """Invent what a version cost."""
    hours = 0.83 + 0.01 * (number % 7)
    figures = {"device_hours": 2 * hours, "money": {"USD": round(5 * hours, 2)}, "priced": True}
    train = StageCost(
        stage="train", wall_hours=hours, devices=2, kind="GPU", attempts=1, cached=False, **figures
    )
    return RunCost(stages=(train,)).model_dump(mode="json")


def production_before(number: int) -> str | None:
    """Return the version that was in production when one was made."""
    last = (number - 1) // MOVED_EACH * MOVED_EACH
    return None if number <= MOVED_EACH else version_of(last)


def history(versions: int) -> list[dict[str, Any]]:
    """Return the moves of production; the last but one is rolled back, and promoted again."""
    moves: list[dict[str, Any]] = []
    for number in range(MOVED_EACH, versions, MOVED_EACH):
        when = (FIRST + timedelta(hours=13 * number + 2)).isoformat(timespec="seconds")
        last = moves[-1]["to"] if moves else None
        why = REASONS[number % len(REASONS)]
        moves.append(
            {
                "when": when,
                "who": ("mara", "jon")[number % 2],
                "why": why,
                "from": last,
                "to": version_of(number),
            }
        )
    return moves


def objects_of(versions: int) -> dict[str, bytes]:
    """Return manifests and the alias `production` by their path in a store; one manifest in `DAMAGED_EACH` is cut."""
    found = {}
    for number in range(versions):
        data = encode_sealed(manifest_of(number, files_of(number)))
        damaged = number % DAMAGED_EACH == DAMAGED_EACH - 1
        found[f"{version_key(version_of(number))}/{MANIFEST}"] = data[:-50] if damaged else data
    if moves := history(versions):
        found[alias_key(f"{MODEL}/production")] = encode_sealed(
            {"version": moves[-1]["to"], "history": moves}
        )
    if versions:
        value = {"version": version_of(versions - 1), "history": []}
        found[alias_key(f"{MODEL}/candidate")] = encode_sealed(value)
    return found


def files_of(number: int) -> dict[str, bytes]:
    """Return the files that the page reads or links to, by name."""
    grid = (ROOT / "docs/grid.png").read_bytes()
    return {
        "grid.png": grid,
        "report.html": b"<title>a report</title>",
        "params.yaml": f"seed: {number // 3}".encode(),
    }


def fill_directory(root: Path, versions: int) -> Store:
    """Write a store into a directory as publishers would."""
    for key, data in objects_of(versions).items():
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        (root / key).write_bytes(data)
        if key.endswith(MANIFEST):
            for name in ("grid.png", "report.html"):
                (root / key).with_name(name).hardlink_to(_once(root, name))
    return open_store(str(root))


def _once(root: Path, name: str) -> Path:
    """Return a file of all versions, written once outside the models."""
    path = root / "shared" / name
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(files_of(0)[name])
    return path


def fill_bucket(name: str, versions: int) -> Store:
    """Write a store into a bucket as publishers would."""
    import boto3

    client = boto3.client("s3")
    client.create_bucket(Bucket=name)
    for data in files_of(0).values():
        client.put_object(Bucket=name, Key=f"objects/{hashlib.sha256(data).hexdigest()}", Body=data)
    for key, data in objects_of(versions).items():
        client.put_object(Bucket=name, Key=key, Body=data)
    return open_store(f"s3://{name}")


def measure(store: Store, versions: int) -> dict[str, Any]:
    """Write the page once; return times in seconds and requests."""
    wall, cpu = time.monotonic(), time.process_time()
    with counted_requests() as counts:
        rebuild_page(store)
    return {
        "versions": versions,
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "wall_seconds": round(time.monotonic() - wall, 2),
        "requests": counts.total(),
    }


def screenshot(page: Path, target: Path, *, width: int = WIDTH, height: int = HEIGHT) -> None:
    """Write what Chromium shows of a page as a PNG with few colours."""
    from PIL import Image

    with TemporaryDirectory() as home:
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        size = f"--window-size={width},{height}"
        where = Path(home) / "page.png"
        subprocess.run(
            [*command, f"--user-data-dir={home}", size, f"--screenshot={where}", page.absolute().as_uri()],
            check=True,
            capture_output=True,
        )
        with Image.open(where) as image:
            image.convert("RGB").quantize(192).save(target, optimize=True)


def main(arguments: list[str]) -> None:
    """Fill a store, write its page and print what that took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--versions", type=int, default=500)
    parser.add_argument("--bucket", action="store_true", help="a bucket of moto instead of a directory")
    parser.add_argument("--store", type=Path, help="an empty directory for the store, which is kept")
    parser.add_argument("--screenshot", type=Path, help="PNG to write")
    chosen = parser.parse_args(arguments)
    if chosen.bucket:
        with bucket_of_moto() as bucket:
            print(json.dumps(measure(fill_bucket(bucket, chosen.versions), chosen.versions)))
        return
    with TemporaryDirectory() as scratch:
        store = fill_directory(chosen.store or Path(scratch) / "releases", chosen.versions)
        line = measure(store, chosen.versions)
        page = Path(store.uri) / PAGE
        print(json.dumps(line | {"page_kilobytes": round(page.stat().st_size / 1e3)}))
        if chosen.screenshot:
            screenshot(page, chosen.screenshot)


if __name__ == "__main__":
    main(sys.argv[1:])
