"""Make assets/tiny/hpd, a small set in HPDv2's own layout, from the emoji pictures beside this file.

Run from the top of the repository: `python assets/tiny/make_hpd.py`. The same input gives the same bytes.
Other subjects: `--subjects FILE --target DIR`; the file names them under "train" and "eval".
"""

import argparse
import io
import json
import random
import tarfile
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

HERE = Path(__file__).resolve().parent
SUBJECTS: Final = HERE / "family/subjects.json"
SEED: Final = 20231
BENCHMARK_OF_GROUP: Final[Mapping[str, str]] = MappingProxyType(
    {
        "Animals & Nature": "nature",
        "Food & Drink": "food",
        "Activities": "objects",
        "Objects": "objects",
        "Travel & Places": "objects",
    }
)
STYLES: Final = ("3D", "Flat", "Ink", "Noto")
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


def benchmarks(subjects: Sequence[str], groups: Mapping[str, str]) -> dict[str, list[str]]:
    """The names of the subjects by the benchmark that their group belongs to."""
    lists: dict[str, list[str]] = {}
    for subject in subjects:
        if groups[subject] not in BENCHMARK_OF_GROUP:
            raise SystemExit(f"{subject!r}: no benchmark takes the group {groups[subject]!r}")
        lists.setdefault(BENCHMARK_OF_GROUP[groups[subject]], []).append(subject)
    return lists


def read_subjects(path: Path, known: Container[str]) -> dict[str, list[str]]:
    """The subjects of both splits: each one has pictures and stands there once."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        subjects: dict[str, list[str]] = {split: list(content[split]) for split in ("train", "eval")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SystemExit(f'{path}: must be JSON with the lists "train" and "eval" ({error!r})') from None
    for subject, times in Counter(chain.from_iterable(subjects.values())).items():
        if subject not in known:
            raise SystemExit(f"{path}: there is no picture of {subject!r}")
        if times > 1:
            raise SystemExit(
                f"{path}: {subject!r} stands there {times} times, train and eval must be disjoint"
            )
    return subjects


def write_benchmarks(directory: Path, lists: Mapping[str, Sequence[str]]) -> None:
    """Write one file per list; a file that an earlier run wrote for other subjects goes."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in sorted(set(BENCHMARK_OF_GROUP.values()) - lists.keys()):
        (directory / f"{name}.json").unlink(missing_ok=True)
    for name, prompts in lists.items():
        write_list(directory / f"{name}.json", prompts)


def make(target: Path, subjects_file: Path = SUBJECTS) -> None:
    """Write the whole set into `target`."""
    import pyarrow.parquet as pq

    rows = pq.read_table(HERE / "data/emoji4.parquet").to_pylist()
    pictures: Pictures = {(row["name"], row["style"]): row["image"] for row in rows}
    groups = {row["name"]: row["group"] for row in rows}
    subjects = read_subjects(subjects_file, groups)
    lists = benchmarks(subjects["eval"], groups)
    write_benchmarks(target / "benchmark", lists)
    for split, chosen, records in (
        ("train", subjects["train"], train_records),
        ("test", subjects["eval"], test_records),
    ):
        names = picture_names(chosen, STYLES)
        write_list(target / f"{split}.json", records(chosen, STYLES, names))
        write_tar(target / f"{split}.tar", ((name, pictures[key]) for key, name in names.items()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--subjects", type=Path, default=SUBJECTS, help="JSON with the lists train and eval")
    parser.add_argument("--target", type=Path, default=HERE / "hpd", help="directory to write into")
    arguments = parser.parse_args()
    make(arguments.target, arguments.subjects)
