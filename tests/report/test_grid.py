import base64
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageFont, ImageOps

from srpo_core.errors import ArtifactError
from srpo_core.gates.pairs import pair_up
from srpo_core.report.grid import (
    CELL_PIXELS,
    INLINE_PIXELS,
    LABEL_WIDTH,
    MARGIN,
    MAX_SEEDS,
    Shot,
    Tile,
    choose_tiles,
    data_uri,
    draw_grid,
    read_images,
    tiles_of,
)
from srpo_core.report.grid import _wrapped as wrapped


def png(colour="red", size=(16, 16)):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, format="PNG")
    return buffer.getvalue()


def label(model, prompt, seed):
    return f"{model} {prompt} {seed}".encode()


@pytest.fixture
def evaluated(tmp_path):
    rows = [
        {"model": model, "prompt": f"p{prompt:02}", "style": "", "seed": seed, "metric": "m", "value": 0.5}
        | {"png": label(model, f"p{prompt:02}", seed)}
        for model in ("aligned", "base")
        for seed in (4, 3, 2, 1)
        for prompt in range(25)
    ]
    path = tmp_path / "images.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=33)
    return path


def test_prompts_are_spread_evenly_and_images_belong_to_their_prompt_and_seed(evaluated):
    tiles = choose_tiles(pair_up(pq.read_table(evaluated), evaluated), evaluated, 5)
    assert [tile.prompt for tile in tiles] == ["p00", "p05", "p10", "p15", "p20"]
    for tile in tiles:
        assert [shot.seed for shot in tile.shots] == [1, 2, 3][:MAX_SEEDS]
        for shot in tile.shots:
            assert shot.before == label("base", tile.prompt, shot.seed)
            assert shot.after == label("aligned", tile.prompt, shot.seed)


def test_requesting_more_prompts_than_exist_shows_all_of_them(evaluated):
    tiles = choose_tiles(pair_up(pq.read_table(evaluated), evaluated), evaluated, 100)
    assert len({tile.prompt for tile in tiles}) == len(tiles) == 25


def test_only_the_requested_images_are_read(evaluated):
    keys = {("base", "p00", 4), ("aligned", "p24", 1), ("base", "p13", 2)}
    assert read_images(evaluated, keys) == {key: label(*key) for key in keys}


def test_a_missing_image_is_named(evaluated):
    with pytest.raises(ArtifactError, match="lacks 1 images, for instance that of base for 'p00', seed 9"):
        read_images(evaluated, {("base", "p00", 9), ("base", "p00", 1)})


def test_tiles_are_in_the_requested_order_of_prompts(evaluated):
    tiles = tiles_of(pair_up(pq.read_table(evaluated), evaluated), evaluated, [7, 2], 1)
    assert [tile.prompt for tile in tiles] == ["p07", "p02"]
    assert [[shot.seed for shot in tile.shots] for tile in tiles] == [[1], [1]]
    assert tiles[0].shots[0].after == label("aligned", "p07", 1)


def test_a_small_image_is_embedded_unchanged():
    image = png()
    head, _, body = data_uri(image).partition(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(body) == image


def test_a_large_image_is_scaled_down():
    head, _, body = data_uri(png(size=(1024, 512))).partition(",")
    assert head == "data:image/webp;base64"
    with Image.open(io.BytesIO(base64.b64decode(body))) as small:
        assert small.size == (INLINE_PIXELS, INLINE_PIXELS // 2)


@pytest.mark.parametrize(
    ("size", "cell"), [((64, 64), 128), ((16, 16), CELL_PIXELS[0]), ((512, 512), CELL_PIXELS[1])]
)
def test_the_grid_shows_before_above_after_in_columns(size, cell, tmp_path):
    tiles = [
        Tile("first", (Shot(0, png("red", size), png("blue", size)),)),
        Tile("second", (Shot(0, png("lime", size), png("yellow", size)),)),
    ]
    path: Path = tmp_path / "grid.png"
    draw_grid(tiles, path)
    with Image.open(path) as image:
        width, height = image.size
        colours = {colour: count for count, colour in image.getcolors(width * height)}
        places = {
            colour: min(
                divmod(index, width)
                for index, seen in enumerate(image.get_flattened_data())
                if seen == colour
            )
            for colour in ((255, 0, 0), (0, 0, 255), (0, 255, 0), (255, 255, 0))
        }
    assert all(colours[colour] == cell * cell for colour in places)
    red, blue, lime, yellow = places.values()
    assert red[1] == blue[1] < lime[1] == yellow[1]
    assert red[0] == lime[0] < blue[0] == yellow[0]


def test_captions_fit_their_column_and_long_ones_end_in_an_ellipsis():
    font = ImageFont.load_default(17)
    text = "a very long prompt about a supercalifragilisticexpialidocious cat in a hat"
    lines = wrapped(text, font, 128)
    assert len(lines) == 2
    assert lines[-1].endswith("…")
    assert all(font.getlength(line) <= 128 for line in lines)
    assert wrapped("red apple", font, 128) == ["red apple"]
    assert wrapped("", font, 128) == [""]


def test_both_rows_are_labelled_before_above_after(tmp_path):
    draw_grid([Tile("first", (Shot(0, png(), png()),))], tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as image:
        rows = [
            (0, 0, MARGIN + LABEL_WIDTH, image.height // 2),
            (0, image.height // 2, MARGIN + LABEL_WIDTH, image.height),
        ]
        boxes = [ImageOps.invert(image.crop(row).convert("L")).getbbox() for row in rows]
    before, after = (right - left for left, _, right, _ in boxes)
    assert before > after > 0
    assert [left for left, *_ in boxes] == pytest.approx([MARGIN, MARGIN], abs=2)
