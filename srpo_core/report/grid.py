"""The before/after grid: the choice of its prompts, and the grid as one image."""

import base64
import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from srpo_core.artifacts import ALIGNED, BASE, require
from srpo_core.data.subsets import evenly_spaced
from srpo_core.errors import ArtifactError
from srpo_core.gates.pairs import Pairs

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont, ImageFont

Key = tuple[str, str, int]  # model, prompt, seed

SIDES = (BASE, ALIGNED)
MAX_SEEDS = 3
INLINE_PIXELS = 384  # larger images are downscaled for the page
CELL_PIXELS = (128, 256)  # minimum and maximum width of an image in the grid
COLUMNS = 8
MARGIN, GAP, LABEL_WIDTH, CAPTION_LINES, TEXT_PIXELS = 28, 12, 78, 2, 17
PAPER, INK, FAINT = "#ffffff", "#1c2127", "#6a737d"


@dataclass(frozen=True)
class Shot:
    """The images of a prompt and seed before and after alignment, as PNG bytes."""

    seed: int
    before: bytes
    after: bytes


@dataclass(frozen=True)
class Tile:
    """One prompt of the grid, with its first seeds."""

    prompt: str
    shots: tuple[Shot, ...]


def choose_tiles(pairs: Pairs, source: Path, num_prompts: int) -> list[Tile]:
    """Choose evenly spaced prompts of the evaluation, whatever their figures, each with its first seeds."""
    return tiles_of(pairs, source, evenly_spaced(range(len(pairs.prompts)), num_prompts), MAX_SEEDS)


def tiles_of(pairs: Pairs, source: Path, prompts: Sequence[int], num_seeds: int) -> list[Tile]:
    """Read the tiles of some prompts, by index, each with its first seeds; `source` contains the images."""
    seeds = {
        index: sorted(pairs.seeds[pairs.prompt_index == index].tolist())[:num_seeds] for index in prompts
    }
    wanted = {(model, pairs.prompts[i], seed) for i, own in seeds.items() for seed in own for model in SIDES}
    images = read_images(source, wanted)
    return [
        Tile(
            prompt=pairs.prompts[index],
            shots=tuple(
                Shot(seed, *(images[model, pairs.prompts[index], seed] for model in SIDES))
                for seed in seeds[index]
            ),
        )
        for index in prompts
    ]


def read_images(source: Path, keys: Collection[Key]) -> dict[Key, bytes]:
    """Read the PNG bytes of some images by (model, prompt, seed), without loading the others into memory.

    Raises:
        ArtifactError: an image is missing.
    """
    import pyarrow.parquet as pq

    images: dict[Key, bytes] = {}
    with pq.ParquetFile(require(source)) as file:
        for batch in file.iter_batches(batch_size=64, columns=["model", "prompt", "seed", "png"]):
            columns = (batch.column(name).to_pylist() for name in ("model", "prompt", "seed"))
            found = {key: row for row, key in enumerate(zip(*columns, strict=True)) if key in keys}
            images |= {key: batch.column("png")[row].as_py() for key, row in found.items()}
    if missing := sorted(set(keys) - images.keys()):
        model, prompt, seed = missing[0]
        raise ArtifactError(
            f"{source} lacks {len(missing)} images, for instance that of {model} for {prompt!r}, seed {seed}: "
            "run 'dvc repro --force -s evaluate'"
        )
    return images


def data_uri(png: bytes) -> str:
    """Encode an image for the page: a small one unchanged, a large one as a smaller WebP."""
    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        if max(image.size) <= INLINE_PIXELS:
            return f"data:image/png;base64,{base64.b64encode(png).decode()}"
        small = image.convert("RGB")
        small.thumbnail((INLINE_PIXELS, INLINE_PIXELS), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        small.save(buffer, format="WEBP", quality=88, method=4)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def draw_grid(tiles: Sequence[Tile], path: Path) -> None:
    """Draw the first seed of every tile as a PNG, before above after, with captions, COLUMNS per row."""
    from PIL import Image

    bands = [_band(tiles[start : start + COLUMNS]) for start in range(0, len(tiles), COLUMNS)]
    width = max(band.width for band in bands) + 2 * MARGIN
    canvas = Image.new("RGB", (width, sum(band.height for band in bands) + 2 * MARGIN), PAPER)
    top = MARGIN
    for band in bands:
        canvas.paste(band, (MARGIN, top))
        top += band.height
    canvas.save(path, format="PNG", optimize=True)


def _band(tiles: Sequence[Tile]) -> "Image":
    """Draw one band of the grid: a row of images before, a row after, and the captions."""
    from PIL import Image, ImageDraw, ImageFont

    shots = [[_cell(png) for png in (tile.shots[0].before, tile.shots[0].after)] for tile in tiles]
    cell_width, cell_height = shots[0][0].size
    font = ImageFont.load_default(TEXT_PIXELS)
    line_height = TEXT_PIXELS + 5
    width = LABEL_WIDTH + len(tiles) * (cell_width + GAP) - GAP
    band = Image.new("RGB", (width, 2 * (cell_height + GAP) + CAPTION_LINES * line_height), PAPER)
    pen = ImageDraw.Draw(band)
    for row, label in enumerate(("before", "after")):
        middle = row * (cell_height + GAP) + cell_height // 2
        pen.text((0, middle), label, fill=INK if row else FAINT, font=font, anchor="lm")
    for column, (tile, cells) in enumerate(zip(tiles, shots, strict=True)):
        left = LABEL_WIDTH + column * (cell_width + GAP)
        for row, cell in enumerate(cells):
            band.paste(cell, (left, row * (cell_height + GAP)))
        top = 2 * (cell_height + GAP) + line_height // 2
        for number, line in enumerate(_wrapped(tile.prompt, font, cell_width)):
            place = (left + cell_width // 2, top + number * line_height)
            pen.text(place, line, fill=FAINT, font=font, anchor="mm")
    return band


def _cell(png: bytes) -> "Image":
    from PIL import Image

    image = Image.open(io.BytesIO(png)).convert("RGB")
    least, greatest = CELL_PIXELS
    width = min(max(2 * image.width, least), greatest)
    return image.resize((width, round(width * image.height / image.width)), Image.Resampling.LANCZOS)


def _wrapped(text: str, font: "FreeTypeFont | ImageFont", width: int) -> list[str]:
    """Wrap a caption into at most CAPTION_LINES lines; text that does not fit is replaced by an ellipsis."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if not lines[-1] or font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    kept = lines[:CAPTION_LINES]
    if len(lines) > CAPTION_LINES:
        kept[-1] += "…"
    return [_shortened(line, font, width) for line in kept]


def _shortened(line: str, font: "FreeTypeFont | ImageFont", width: int) -> str:
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(line + "…") > width:
        line = line[:-1]
    return line.removesuffix("…") + "…"
