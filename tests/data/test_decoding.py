import io
import random
import struct
import warnings
import zlib
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image, ImageCms

from srpo_core.data.decoding import MOST_PIXELS, read_image

WIDTH, HEIGHT = 48, 32
ORIENTATION = 0x0112
DATE_OF_PROFILE = slice(24, 36)
# how a camera that was turned stores an upright image: the inverse of what the orientation asks for
STORED = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: np.rot90,
    7: lambda upright: np.rot90(upright, 2).transpose(1, 0, 2),
    8: lambda upright: np.rot90(upright, -1),
}


def scene():
    """An upright image without symmetry, (HEIGHT, WIDTH, 3)."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    pixels = np.stack([columns * 5, rows * 7, (columns + rows) * 2], axis=-1).astype(np.uint8)
    pixels[:8, :16] = (250, 20, 30)
    return pixels


def encoded(image, form="PNG", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def seen(content):
    image = read_image(content)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def png_chunks(*chunks):
    """A PNG of raw chunks, for what Pillow cannot write."""
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in (*chunks, (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + body


def deep_png(values, colour_type, transparent=None):
    """A PNG of 16 bits a channel; values (H, W) or (H, W, channels)."""
    height, width = values.shape[:2]
    lines = values.astype(">u2").reshape(height, -1)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0))]
    if transparent is not None:
        chunks.append((b"tRNS", struct.pack(f">{len(transparent)}H", *transparent)))
    data = zlib.compress(b"".join(b"\0" + line.tobytes() for line in lines))
    return png_chunks(*chunks, (b"IDAT", data))


def test_plain_images_are_read_as_they_are():
    image = Image.fromarray(scene())
    for form in ("PNG", "BMP", "TIFF", "PPM"):
        np.testing.assert_array_equal(seen(encoded(image, form)), scene())
    np.testing.assert_array_equal(seen(encoded(image, "WEBP", lossless=True)), scene())
    lossy = encoded(image, "JPEG", quality=95)
    np.testing.assert_array_equal(seen(lossy), np.asarray(Image.open(io.BytesIO(lossy))))


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_exif_orientation_is_applied_once(form, orientation):
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](scene())))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(form, {})
    found = read_image(encoded(stored, form, exif=exif, **options))
    assert found.size == (WIDTH, HEIGHT)
    assert np.abs(np.asarray(found).astype(int) - scene()).mean() < 2
    # nobody applies it again
    assert found.getexif().get(ORIENTATION, 1) == 1 or "exif" not in found.info


@pytest.mark.parametrize("orientation", [0, 9, 255])
def test_an_orientation_that_does_not_exist_means_nothing(orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    np.testing.assert_array_equal(seen(encoded(Image.fromarray(scene()), exif=exif)), scene())


def test_grey_of_16_bits_is_scaled():
    ramp = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    expected = np.repeat(np.arange(256).reshape(16, 16, 1), 3, axis=2)
    image = Image.fromarray(ramp)
    assert image.mode == "I;16"
    for content in (encoded(image), encoded(image, "TIFF"), deep_png(ramp, 0)):
        np.testing.assert_array_equal(seen(content), expected)
    plain = b"P5 16 16 65535\n" + ramp.astype(">u2").tobytes()
    np.testing.assert_array_equal(seen(plain), expected)


def test_colours_of_16_bits_are_scaled():
    deep = scene().astype(np.uint16) * 257
    np.testing.assert_array_equal(seen(deep_png(deep, 2)), scene())
    half = np.concatenate([deep, np.full((HEIGHT, WIDTH, 1), 32896)], axis=-1)
    assert np.abs(seen(deep_png(half, 6)) - (scene() * (128 / 255) + 127)).max() <= 1


def test_a_transparent_value_of_16_bits_is_white():
    grey = np.full((4, 4), 1000)
    grey[0, 0] = 70
    assert seen(deep_png(grey, 0, (1000,)))[:, :, 0].tolist() == [[0, 255, 255, 255], *[[255] * 4] * 3]
    colours = np.full((4, 4, 3), (1000, 2000, 3000))
    colours[0, 0] = 257
    found = seen(deep_png(colours, 2, (1000, 2000, 3000)))
    assert found[0, 0].tolist() == [1, 1, 1]
    assert (found.reshape(-1, 3)[1:] == 255).all()


def test_a_transparent_colour_of_16_bits_with_small_values_is_white():
    colours = np.full((4, 4, 3), (200, 100, 50))
    colours[0, 0] = (51400, 25700, 12850)
    found = seen(deep_png(colours, 2, (200, 100, 50)))
    assert found[0, 0].tolist() == [200, 100, 50]
    assert (found.reshape(-1, 3)[1:] == 255).all()


@pytest.mark.parametrize(("bits", "key"), [(1, 1), (1, 0), (2, 2), (2, 3), (4, 7), (4, 15), (8, 77)])
@pytest.mark.parametrize("unused", [0, 0xA000])
def test_a_transparent_grey_of_few_bits_is_white(bits, key, unused):
    """The bits of the key that the depth has no use for may be anything; of one bit, Pillow takes any for white."""
    unused = unused if bits > 1 else 0
    values = [value for value in range(2**bits) if value != key][:4] + [key] * 4
    lines = "".join(f"{value:0{bits}b}" for value in values)
    lines += "0" * (-len(lines) % 8)
    row = int(lines, 2).to_bytes(len(lines) // 8, "big")
    header = struct.pack(">IIBBBBB", len(values), 1, bits, 0, 0, 0, 0)
    transparent = (b"tRNS", struct.pack(">H", key | unused))
    content = png_chunks((b"IHDR", header), transparent, (b"IDAT", zlib.compress(b"\0" + row)))
    expected = [value * 255 // (2**bits - 1) for value in values[:-4]] + [255] * 4
    assert seen(content)[0, :, 0].tolist() == expected


def test_damaged_metadata_print_nothing():
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    exif[0x010E] = "a description that is longer than four bytes"
    whole = encoded(Image.fromarray(scene()), "JPEG", exif=exif)
    start = whole.index(b"Exif\0\0")
    with warnings.catch_warnings(record=True) as caught:
        warnings.resetwarnings()
        for cut in (20, 30, 40):
            # what the directory points to is not there
            damaged = whole[: start + cut] + b"\xee" * 8 + whole[start + cut + 8 :]
            with suppress(ValueError):
                read_image(damaged)
        filters = len(warnings.filters)
        read_image(whole)
        assert len(warnings.filters) == filters
    assert [str(one.message) for one in caught] == []


def test_values_of_unknown_range_are_refused():
    for mode in ("F", "I"):
        with pytest.raises(ValueError, match=r"^32 bits a channel, whose range is unknown: convert it"):
            read_image(encoded(Image.new(mode, (4, 4), 7), "TIFF"))


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
def test_transparency_is_put_on_white_and_hides_its_colours(form):
    alpha = np.full((HEIGHT, WIDTH), 255, np.uint8)
    alpha[:, :10], alpha[:, 10:20] = 0, 128
    image = Image.fromarray(np.dstack([scene(), alpha]))
    options = {"lossless": True, "exact": True} if form == "WEBP" else {}
    found = seen(encoded(image, form, **options))
    assert (found[:, :10] == 255).all()
    assert np.abs(found[:, 10:20] - (scene()[:, 10:20] * (128 / 255) + 127)).max() <= 1
    np.testing.assert_array_equal(found[:, 20:], scene()[:, 20:])


def test_grey_with_transparency_is_put_on_white():
    grey = Image.fromarray(np.dstack([np.full((4, 4), 60, np.uint8), np.eye(4, dtype=np.uint8) * 255]))
    assert grey.mode == "LA"
    np.testing.assert_array_equal(seen(encoded(grey))[:, :, 1], np.where(np.eye(4), 60, 255))


def test_palettes_are_converted_with_their_transparency():
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 200, 100, 0, 90, 90, 90])
    image.putdata([0, 1, 2])
    assert seen(encoded(image))[0].tolist() == [[10, 20, 30], [200, 100, 0], [90, 90, 90]]
    for form in ("PNG", "GIF"):
        one = seen(encoded(image, form, transparency=1))
        assert one[0].tolist() == [[10, 20, 30], [255, 255, 255], [90, 90, 90]]
    several = seen(encoded(image, transparency=bytes([0, 255, 51])))
    assert several[0].tolist() == [[255, 255, 255], [200, 100, 0], [222, 222, 222]]


@pytest.mark.parametrize(("mode", "value", "expected"), [("1", 1, 255), ("1", 0, 0), ("L", 77, 77)])
def test_grey_and_black_and_white_become_rgb(mode, value, expected):
    assert seen(encoded(Image.new(mode, (5, 4), value))).reshape(-1).tolist() == [expected] * 60


def test_a_transparent_grey_is_white():
    assert (seen(encoded(Image.new("L", (5, 4), 77), transparency=77)) == 255).all()


def test_cmyk_is_converted():
    ink = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    for form, options in (("JPEG", {"quality": 100}), ("TIFF", {})):
        red, green, blue = seen(encoded(ink, form, **options))[4, 4]
        assert red > 240
        assert max(green, blue) < 15


def test_a_colour_profile_is_converted_to_srgb():
    # a profile whose red and green are exchanged, which no viewer could show by the raw values
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, green = profile.find(b"rXYZ"), profile.find(b"gXYZ")
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    content = encoded(Image.new("RGB", (4, 4), (255, 0, 0)), icc_profile=bytes(profile))
    assert np.abs(seen(content)[0, 0] - [0, 255, 0]).max() <= 2
    transparent = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    transparent.putpixel((0, 0), (255, 0, 0, 255))
    found = seen(encoded(transparent, icc_profile=bytes(profile)))
    assert np.abs(found[0, 0] - [0, 255, 0]).max() <= 2
    assert (found[1:] == 255).all()


def test_a_profile_of_srgb_changes_no_pixel():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    np.testing.assert_array_equal(seen(encoded(Image.fromarray(scene()), icc_profile=profile)), scene())


@pytest.mark.parametrize("profile", [b"no profile", b"\0" * 300], ids=["text", "zeros"])
def test_a_profile_that_cannot_be_used_is_ignored(profile):
    np.testing.assert_array_equal(seen(encoded(Image.fromarray(scene()), icc_profile=profile)), scene())


def test_a_profile_of_another_colour_space_is_ignored():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    np.testing.assert_array_equal(seen(encoded(Image.fromarray(scene()), icc_profile=profile)), scene())


def test_the_result_has_no_metadata_that_a_second_writer_could_keep():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    content = encoded(Image.fromarray(scene()), "JPEG", icc_profile=profile, comment=b"private")
    assert read_image(content).info == {}


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_image_of_several_frames_is_refused(form):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    content = encoded(frames[0], form, save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match=rf"^a {form} of 3 frames: only images of one frame are read$"):
        read_image(content)
    assert read_image(encoded(frames[0], form)).size == (8, 8)


def test_the_first_image_of_a_photo_with_a_depth_map_is_read():
    photo, depth = Image.fromarray(scene()), Image.new("L", (8, 8))
    content = encoded(photo, "MPO", save_all=True, append_images=[depth], quality=95, subsampling=0)
    assert np.abs(seen(content) - scene()).mean() < 2


def test_a_decompression_bomb_is_refused_without_a_warning():
    def header(width, height):
        ihdr = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        return png_chunks((b"IHDR", ihdr), (b"IDAT", zlib.compress(b"")))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for width, height in ((10_000, 10_000), (60_000, 60_000)):
            with pytest.raises(ValueError, match=r"pixels: at most 89,478,485 are read$"):
                read_image(header(width, height))
    assert MOST_PIXELS == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP"])
def test_compressed_metadata_cannot_fill_the_memory(kind):
    huge = zlib.compress(bytes(40_000_000))
    ihdr = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    content = png_chunks((b"IHDR", ihdr), (kind, b"a\0\0" + huge), (b"IDAT", zlib.compress(bytes(4))))
    try:
        assert read_image(content).size == (1, 1)
    except ValueError as error:
        assert "too large" in str(error).lower()  # both are right, a crash is not


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_a_truncated_image_cannot_be_decoded(form):
    content = encoded(Image.effect_noise((64, 64), 50).convert("RGB"), form)
    assert read_image(content).size == (64, 64)
    with pytest.raises(ValueError, match=r"."):
        read_image(content[:-200])


def test_what_is_no_image_is_named():
    with pytest.raises(ValueError, match=r"^cannot identify image file: one of AVIF, BMP, .* is needed$"):
        read_image(b"no image")
    with pytest.raises(ValueError, match=r"^an empty file$"):
        read_image(b"")
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n"
    with pytest.raises(ValueError, match=r"^a Git LFS pointer: run git lfs pull$"):
        read_image(pointer)


def test_a_format_that_runs_another_program_is_not_opened():
    with pytest.raises(ValueError, match="cannot identify"):
        read_image(encoded(Image.new("RGB", (4, 4)), "EPS"))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "JPEG2000", "AVIF"])
def test_damaged_bytes_end_in_one_line_or_in_an_image(form):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    options = {"exif": exif} if form in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF") else {}
    if form in ("JPEG", "PNG", "TIFF"):
        profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
        profile[DATE_OF_PROFILE] = bytes(12)  # so that the same bytes are damaged each time
        options["icc_profile"] = bytes(profile)
    whole = encoded(Image.fromarray(scene()), form, **options)
    assert read_image(whole).mode == "RGB"
    draw = random.Random(form)
    refused = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(150):
            damaged = bytearray(whole)
            for _ in range(draw.randint(1, 4)):
                damaged[draw.randrange(min(len(damaged), 4000))] = draw.randrange(256)
            try:
                assert read_image(bytes(damaged)).mode == "RGB"
            except ValueError as error:
                assert str(error)  # any other error is the defect
                assert "\n" not in str(error)
                refused += 1
    assert refused >= 2
    assert refused <= 148 or form == "PNG", "every chunk of a PNG has a checksum"
