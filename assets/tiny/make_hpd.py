"""Make assets/tiny/hpd, a small set in HPDv2's own layout, from the emoji pictures beside this file.

Run from the top of the repository: `python assets/tiny/make_hpd.py`. The same input gives the same bytes.
"""

import argparse
import io
import json
import random
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

HERE = Path(__file__).resolve().parent
SEED: Final = 20231
BENCHMARK_OF_GROUP: Final[Mapping[str, str]] = MappingProxyType(
    {"Animals & Nature": "nature", "Food & Drink": "food"}
)
Pictures = Mapping[tuple[str, str], bytes]


def others(subjects: Sequence[str], shifts: Sequence[int], rng: random.Random) -> dict[str, list[str]]:
    """For each subject, one other subject per shift, so that every subject is the other one equally often."""
    order = rng.sample(subjects, len(subjects))
    return {
        subject: [order[(place + shift) % len(order)] for shift in shifts]
        for place, subject in enumerate(order)
    }


def picture_names(subjects: Sequence[str], styles: Sequence[str]) -> dict[tuple[str, str], str]:
    """File names of the pictures, numbered as HPDv2 numbers them."""
    keys = [(subject, style) for subject in subjects for style in styles]
    return {key: f"{number:08d}.webp" for number, key in enumerate(keys)}


def train_records(
    subjects: Sequence[str], styles: Sequence[str], names: Mapping[tuple[str, str], str]
) -> list[dict[str, Any]]:
    """One record per subject and style: the subject's picture is preferred to another subject's."""
    rng = random.Random(SEED)
    wrong = {style: others(subjects, [1], rng) for style in styles}
    records = []
    for subject in subjects:
        for style in styles:
            right_first = bool(rng.getrandbits(1))
            paths = [names[subject, style], names[wrong[style][subject][0], style]]
            records.append(
                {
                    "human_preference": [1, 0] if right_first else [0, 1],
                    "prompt": subject,
                    "file_path": paths if right_first else paths[::-1],
                }
            )
    return records


def test_records(
    subjects: Sequence[str], styles: Sequence[str], names: Mapping[tuple[str, str], str]
) -> list[dict[str, Any]]:
    """One record per subject and style: the subject's picture has rank 1, two others share rank 2."""
    rng = random.Random(SEED + 1)
    wrong = {style: others(subjects, [1, 2], rng) for style in styles}
    records = []
    for subject in subjects:
        for style in styles:
            shown = rng.sample([subject, *wrong[style][subject]], 3)
            rank = [1 if other == subject else 2 for other in shown]
            records.append(
                {
                    "prompt": subject,
                    "image_path": [names[other, style] for other in shown],
                    "rank": rank,
                    "raw_annotations": [{"rank": rank, "user_hash": "construction"}],
                }
            )
    return records


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """Write an uncompressed tar whose bytes depend on nothing but its members."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in sorted(members):
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))


def write_list(path: Path, items: Iterable[Any]) -> None:
    """Write a JSON list with one item per line, so that a change shows as a change of lines."""
    lines = ",\n".join(json.dumps(item, ensure_ascii=False) for item in items)
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def make(target: Path) -> None:
    """Write the whole set into `target`."""
    import pyarrow.parquet as pq

    rows = pq.read_table(HERE / "data/emoji4.parquet").to_pylist()
    pictures: Pictures = {(row["name"], row["style"]): row["image"] for row in rows}
    groups = {row["name"]: row["group"] for row in rows}
    subjects = json.loads((HERE / "family/subjects.json").read_text(encoding="utf-8"))
    styles = subjects["styles"]
    (target / "benchmark").mkdir(parents=True, exist_ok=True)
    for split, chosen, records in (
        ("train", subjects["train"], train_records),
        ("test", subjects["eval"], test_records),
    ):
        names = picture_names(chosen, styles)
        write_list(target / f"{split}.json", records(chosen, styles, names))
        write_tar(target / f"{split}.tar", ((name, pictures[key]) for key, name in names.items()))
    for group, benchmark in BENCHMARK_OF_GROUP.items():
        prompts = [subject for subject in subjects["eval"] if groups[subject] == group]
        write_list(target / f"benchmark/{benchmark}.json", prompts)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", type=Path, default=HERE / "hpd", help="directory to write into")
    make(parser.parse_args().target)
