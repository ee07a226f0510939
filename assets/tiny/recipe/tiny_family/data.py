"""Rebuild data/emoji4.parquet from the packages that it was made of, and compare the two.

Run in assets/tiny/recipe: `python -m tiny_family.data --compare ../data/emoji4.parquet`.
Needs the command `npm` (only its `pack`) and one package that the rest of the project does not: `pip
install resvg-py`. The packages, their versions and the digests of their archives stand in sources.json.
"""

import argparse
import base64
import hashlib
import importlib
import io
import json
import random
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tiny_family.pictures import STYLES

if TYPE_CHECKING:
    from PIL.Image import Image

SOURCES: Final = Path(__file__).resolve().parents[1] / "sources.json"
TARGET: Final = Path("out/emoji4.parquet")
COLUMNS: Final = ("emoji", "name", "group", "style", "split", "image")
LEFT_OUT: Final = ("People & Body", "Flags")
SIDE: Final = 64
RENDERED: Final = 128  # side of an SVG before it is scaled down
VARIATION: Final = "\ufe0f"  # asks for the coloured form; some packages leave it out of a name
NOVEL, EVAL = 0.05, 0.2

Files = Mapping[str, bytes]
Row = dict[str, Any]
Draw = Callable[[str], "Image | None"]


@dataclass(frozen=True)
class Source:
    """A package of npm, one version of it, and the digest of its archive as npm writes it."""

    package: str
    version: str
    integrity: str

    def check(self, content: bytes) -> None:
        """Refuse an archive whose bytes are not the ones that were pinned."""
        digest = base64.b64encode(hashlib.sha512(content).digest()).decode()
        if f"sha512-{digest}" != self.integrity:
            raise SystemExit(
                f"{self.package} {self.version}: the archive is not the one that {SOURCES.name} names, "
                f"its digest is sha512-{digest}"
            )


@dataclass(frozen=True)
class Difference:
    """How the pictures of one style differ between two tables; `mean` in steps of 255."""

    pictures: int
    same_bytes: int
    same_pixels: int
    mean: float


def read_sources(path: Path) -> dict[str, Source]:
    """The package of each style, and of the names."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return {
        part: Source(entry["package"], entry["version"], entry["integrity"])
        for part, entry in content.items()
    }


def fetch(source: Source, directory: Path) -> Path:
    """Have npm put the archive of a package into an empty directory."""
    wanted = f"{source.package}@{source.version}"
    command = ["npm", "pack", wanted, "--loglevel=error", "--pack-destination", str(directory)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise SystemExit("npm is missing: install Node.js, its command npm fetches the packages") from None
    archives = sorted(directory.glob("*.tgz"))
    if done.returncode or not archives:
        told = done.stderr.strip().splitlines() or ["it wrote no archive"]
        raise SystemExit(f"npm pack {wanted} failed: {told[0]}")
    return archives[0]


def read_files(source: Source, archive: Path) -> Files:
    """The files of a package by their paths, after its digest was checked."""
    source.check(archive.read_bytes())
    with tarfile.open(archive) as tar:
        members = [(member.name, tar.extractfile(member)) for member in tar if member.isfile()]
        return {name.partition("/")[2]: content.read() for name, content in members if content}


def read_packages(sources: Mapping[str, Source]) -> dict[str, Files]:
    """Fetch all packages, one after the other."""
    packages = {}
    for part, source in sources.items():
        with tempfile.TemporaryDirectory() as directory:
            packages[part] = read_files(source, fetch(source, Path(directory)))
    return packages


def codes(emoji: str) -> list[str]:
    """How packages name the files of an emoji: 1f336, or with the variation selector, 1f336-fe0f."""
    forms = (emoji.replace(VARIATION, ""), emoji)
    return ["-".join(f"{ord(sign):x}" for sign in form) for form in forms]


def drawn_by_pixels(files: Files) -> Draw:
    """Pictures of a package of WebP files; where an emoji has two, the first name in the alphabet counts."""

    def draw(emoji: str) -> "Image | None":
        from PIL import Image

        paths = sorted(path for code in codes(emoji) if (path := f"assets/{code}.webp") in files)
        if not paths:
            return None
        drawn = Image.open(io.BytesIO(files[paths[0]])).convert("RGBA")
        white = Image.new("RGBA", drawn.size, "white")
        white.alpha_composite(drawn)
        return white.convert("RGB")

    return draw


def drawn_by_paths(files: Files) -> Draw:
    """Pictures of a package in Iconify's layout, whose icons are bodies of SVG."""
    resvg = import_resvg()
    icons, names = json.loads(files["icons.json"]), json.loads(files["chars.json"])

    def draw(emoji: str) -> "Image | None":
        from PIL import Image

        name = next((names[code] for code in codes(emoji) if code in names), None)
        if name is None:
            return None
        svg = svg_of(icons, name)
        png = resvg.svg_to_bytes(
            svg_string=svg, width=RENDERED, height=RENDERED, background="white", skip_system_fonts=True
        )
        return Image.open(io.BytesIO(png)).convert("RGB")

    return draw


def import_resvg() -> Any:
    """The renderer, which is no dependency of the project."""
    try:
        return importlib.import_module("resvg_py")
    except ImportError:
        raise SystemExit("resvg-py is missing, it renders the SVG pictures: pip install resvg-py") from None


def svg_of(icons: Mapping[str, Any], name: str) -> str:
    """An icon of an Iconify set as a document; no subject is an alias in the pinned versions."""
    icon = icons["icons"][name]
    width, height = (icon.get(side, icons[side]) for side in ("width", "height"))
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return (
        f'<svg {spaces} viewBox="0 0 {width} {height}" width="{width}" height="{height}">{icon["body"]}</svg>'
    )


def scaled(picture: "Image") -> bytes:
    """A picture as it stands in the table."""
    from PIL.Image import Resampling

    buffer = io.BytesIO()
    small = picture.resize((SIDE, SIDE), Resampling.LANCZOS)
    small.save(buffer, "WEBP", quality=90, method=2)
    return buffer.getvalue()


def splits(subjects: Sequence[str]) -> dict[str, str]:
    """The split of each subject: after a shuffle with seed 0, 5 % novel, the next 20 % eval, the rest train."""
    order = list(subjects)
    random.Random(0).shuffle(order)
    novel, held_out = int(NOVEL * len(order)), int(EVAL * len(order))
    names = ["novel"] * novel + ["eval"] * held_out
    names += ["train"] * (len(order) - len(names))
    return dict(zip(order, names, strict=True))


def build(packages: Mapping[str, Files]) -> list[Row]:
    """The rows of the table: the subjects that all styles draw, in the order of Unicode."""
    known: dict[str, dict[str, str]] = json.loads(packages["names"]["data-by-emoji.json"])
    draws: dict[str, Draw] = {"3D": drawn_by_pixels(packages["3D"])}
    draws |= {style: drawn_by_paths(packages[style]) for style in STYLES[1:]}
    chosen = [emoji for emoji, entry in known.items() if entry["group"] not in LEFT_OUT]
    images = {emoji: pictures for emoji in chosen if (pictures := pictures_of(emoji, draws))}
    split = splits(list(images))
    return [
        {
            "emoji": emoji,
            "name": known[emoji]["name"].lower().replace("’", "'"),
            "group": known[emoji]["group"],
            "style": style,
            "split": split[emoji],
            "image": image,
        }
        for emoji, pictures in images.items()
        for style, image in pictures.items()
    ]


def pictures_of(emoji: str, draws: Mapping[str, Draw]) -> dict[str, bytes]:
    """The picture of an emoji in each style; none when a style lacks it."""
    pictures: dict[str, bytes] = {}
    for style, draw in draws.items():
        drawn = draw(emoji)
        if drawn is None:
            return {}
        pictures[style] = scaled(drawn)
    return pictures


def write(rows: Sequence[Row], target: Path) -> None:
    """Write the table under a name that appears when it is complete."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {column: pa.binary() if column == "image" else pa.string() for column in COLUMNS}
    table = pa.Table.from_pylist(list(rows), schema=pa.schema(types))
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    pq.write_table(table, part, compression="zstd")
    part.rename(target)


def read(path: Path) -> list[Row]:
    """The rows of a table."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows: list[Row] = pq.read_table(path, columns=list(COLUMNS)).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise SystemExit(
            f"{path} cannot be read as a table of pictures: {str(error).splitlines()[0]}"
        ) from None
    return rows


def difference(pairs: Sequence[tuple[bytes, bytes]]) -> Difference:
    """Compare pictures, two by two."""
    import numpy as np
    from PIL import Image

    def pixels(content: bytes) -> Any:
        return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), dtype=np.int16)

    means = [float(np.abs(pixels(one) - pixels(two)).mean()) for one, two in pairs]
    return Difference(
        pictures=len(pairs),
        same_bytes=sum(one == two for one, two in pairs),
        same_pixels=means.count(0.0),
        mean=sum(means) / max(len(means), 1),
    )


def compare(ours: Sequence[Row], theirs: Sequence[Row]) -> Iterator[str]:
    """One line per style, and one on the rows."""
    first, second = ({(row["emoji"], row["style"]): row for row in rows} for rows in (ours, theirs))
    shared = [key for key in first if key in second]
    for style in STYLES:
        found = difference([(first[key]["image"], second[key]["image"]) for key in shared if key[1] == style])
        yield (
            f"{style}: {found.pictures} pictures, {found.same_bytes} with the same bytes, "
            f"{found.same_pixels} with the same pixels, mean absolute difference {found.mean:.3f} of 255"
        )
    words = [column for column in COLUMNS if column != "image"]
    other = sum(any(first[key][word] != second[key][word] for word in words) for key in shared)
    alone = len(first.keys() ^ second.keys())
    yield f"rows: {alone} in one table only, {other} with another name, group or split"


def refuse_existing(target: Path) -> None:
    """Never write over a table."""
    if target.exists():
        raise SystemExit(f"{target} exists: remove it, or name another file with --target")


def main() -> None:
    """Rebuild the table and, when asked, compare it with another."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", type=Path, default=TARGET, help=f"file to write (default: {TARGET})")
    parser.add_argument("--compare", type=Path, help="a table to compare the new one with")
    arguments = parser.parse_args()
    refuse_existing(arguments.target)
    theirs = read(arguments.compare) if arguments.compare else None
    import_resvg()
    rows = build(read_packages(read_sources(SOURCES)))
    write(rows, arguments.target)
    lines = [f"{arguments.target}: {len(rows)} pictures"]
    if theirs is not None:
        lines += compare(rows, theirs)
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
