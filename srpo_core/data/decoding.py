"""Decode images as people see them: upright, in 8 bits of sRGB, on white.

Files that people collect have EXIF orientations, 16 bits, palettes, alpha channels, CMYK and colour profiles. Without
the conversions below they would reach reward and VAE sideways, white, or with the colours of transparent pixels.
"""

import io
import struct
import warnings
import zlib
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from PIL import Image

# without those that run another program (EPS) or have no pixels of their own (WMF)
_SUFFIXES: Final = {
    "AVIF": ".avif .avifs",
    "BMP": ".bmp",
    "GIF": ".gif",
    "JPEG": ".jfif .jpe .jpeg .jpg .mpo",
    "JPEG2000": ".j2c .j2k .jp2 .jpc .jpf .jpx",
    "PNG": ".apng .png",
    "PPM": ".pbm .pfm .pgm .pnm .ppm",
    "TIFF": ".tif .tiff",
    "WEBP": ".webp",
}
FORMATS: Final = tuple(_SUFFIXES)
IMAGE_SUFFIXES: Final = frozenset(" ".join(_SUFFIXES.values()).split())  # in lower case
MOST_PIXELS: Final = 89_478_485  # 1 GiB of RGBA at four bytes a channel; Pillow warns above it
_POINTER: Final = b"version https://git-lfs"
# formats whose frames are shown one after the other, or as pages; the further ones of an MPO, which is read as JPEG,
# are depth maps and thumbnails
_MOVING: Final = frozenset({"AVIF", "GIF", "PNG", "TIFF", "WEBP"})
_BITS_PER_SAMPLE: Final = 258  # tags of TIFF
_PHOTOMETRIC: Final = 262
_BYTE: Final = 255
_BIT_DEPTH: Final = 24  # where the first chunk of a PNG has it
_PILLOW: Final = r"PIL\."
_SPACES: Final = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
# what Pillow raises on damaged files, besides OSError
_DAMAGE: Final = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    struct.error,
    zlib.error,
)


def read_image(content: bytes) -> "Image.Image":
    """Decode an image file completely, and return what a viewer shows, in RGB with 8 bits a channel.

    The EXIF orientation is applied, 16 bits are scaled to 8, transparency is put on white, CMYK, grey and palettes are
    converted, and an embedded colour profile is converted to sRGB. A profile that cannot be used, or is of another
    colour space than the image, is ignored, as viewers do. The result has no metadata.

    Raises:
        ValueError: the file cannot be decoded, has several frames or too many pixels; the message has no name of a file.
    """
    from PIL import Image, UnidentifiedImageError

    _silence_pillow()
    Image.init()  # the plugins of FORMATS; the first call alone has an effect
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        _require_one_frame(image)
        _require_size(image.size)
        image.load()
        _scale_transparent_colour(image, content)
        seen = _upright(_on_white(image), image.getexif().get(_orientation_tag()))
    except Image.DecompressionBombError:
        raise ValueError(f"more than {2 * MOST_PIXELS:,} pixels: at most {MOST_PIXELS:,} are read") from None
    except UnidentifiedImageError:
        raise ValueError(_what_it_is(content)) from None
    except _DAMAGE as error:
        first, *_ = str(error).splitlines() or [""]
        raise ValueError(first or type(error).__name__) from None
    seen.info = {}
    return seen


def _silence_pillow() -> None:
    """Ignore Pillow's warnings, once, as threads share the filters.

    Too many pixels are refused in one line, and damaged metadata mean nothing.
    """
    ignored = (one[3] for one in warnings.filters if one[0] == "ignore")
    if not any(getattr(module, "pattern", module) == _PILLOW for module in ignored):
        warnings.filterwarnings("ignore", module=_PILLOW)


def _scale_transparent_colour(image: "Image.Image", content: bytes) -> None:
    """Scale the transparent colour of a PNG, which has the bits of the file, to the 8 bits of the loaded image."""
    key = image.info.get("transparency")
    if image.format != "PNG" or image.mode not in ("1", "L", "RGB") or not isinstance(key, int | tuple):
        return
    bits = content[_BIT_DEPTH]
    greatest = (1 << min(bits, 8)) - 1

    def scaled(value: int) -> int:
        # the file may have more bits than count; of 16, Pillow keeps the upper 8
        used = value & ((1 << bits) - 1)
        return (used >> max(bits - 8, 0)) * _BYTE // greatest

    image.info["transparency"] = tuple(map(scaled, key)) if isinstance(key, tuple) else scaled(key)


def _require_one_frame(image: "Image.Image") -> None:
    frames = getattr(image, "n_frames", 1)
    if image.format in _MOVING and frames > 1:
        raise ValueError(f"a {image.format} of {frames} frames: only images of one frame are read")


def _require_size(size: tuple[int, int]) -> None:
    width, height = size
    if width * height > MOST_PIXELS:
        raise ValueError(f"{width} x {height} pixels: at most {MOST_PIXELS:,} are read")


def _what_it_is(content: bytes) -> str:
    if content.startswith(_POINTER):
        return "a Git LFS pointer: run git lfs pull"
    if not content:
        return "an empty file"
    return f"cannot identify image file: one of {', '.join(FORMATS)} is needed"


def _orientation_tag() -> int:
    from PIL.ExifTags import Base

    return int(Base.Orientation)


def _upright(image: "Image.Image", orientation: Any) -> "Image.Image":
    """Apply an EXIF orientation, 1 to 8; others mean nothing."""
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return image.transpose(turns[orientation]) if orientation in turns else image


def _on_white(image: "Image.Image") -> "Image.Image":
    """Convert a loaded image of any mode to sRGB, transparent pixels on white."""
    from PIL import Image

    colours, alpha = _eight_bits(image) if _is_deep(image) else _split(image)
    if profile := image.info.get("icc_profile"):
        colours = _to_srgb(colours, profile)
    colours = colours if colours.mode == "RGB" else colours.convert("RGB")
    if alpha is None:
        return colours
    white = Image.new("RGB", colours.size, "white")
    white.paste(colours, mask=alpha)
    return white


def _is_deep(image: "Image.Image") -> bool:
    return image.mode.startswith("I") or image.mode == "F"


def _eight_bits(image: "Image.Image") -> "tuple[Image.Image, Image.Image | None]":
    """Scale grey values of more than 8 bits to 8; return them and the alpha channel, if there is one.

    Raises:
        ValueError: the values have no known range (32 bits, floating point).
    """
    import numpy as np
    from PIL import Image

    # Pillow scales the values of a PPM to 16 bits in this mode
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PPM", "PNG")):
        raise ValueError("32 bits a channel, whose range is unknown: convert it to 8 or 16 bits")
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
    values = np.asarray(image).astype(np.uint32)
    greatest = 2 ** min(bits, 16) - 1
    grey = ((values * 255 + greatest // 2) // greatest).clip(0, 255).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == 0:  # white is zero; Pillow inverts only 8 bits
        grey = 255 - grey
    hidden = image.info.get("transparency")
    alpha = None if hidden is None else Image.fromarray(np.where(values == hidden, 0, 255).astype(np.uint8))
    return Image.fromarray(grey), alpha


def _split(image: "Image.Image") -> "tuple[Image.Image, Image.Image | None]":
    """Return the colours of an image of 8 bits, as L, RGB or CMYK, and its alpha channel, if there is one."""
    if not image.has_transparency_data:
        return (image if image.mode in _SPACES else image.convert("RGB")), None
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode == "LA":
        return image.getchannel("L"), image.getchannel("A")
    whole = image if image.mode == "RGBA" else image.convert("RGBA")
    return whole.convert("RGB"), whole.getchannel("A")


def _to_srgb(colours: "Image.Image", profile: bytes) -> "Image.Image":
    from PIL import ImageCms

    transform = _srgb_transform(profile, colours.mode)
    if transform is None:
        return colours
    converted = ImageCms.applyTransform(colours, transform)
    assert converted is not None  # it is None only for a transform in place
    return converted


@lru_cache(maxsize=32)
def _srgb_transform(profile: bytes, mode: str) -> Any:
    """Return the transform of a mode from an ICC profile to sRGB; None if it changes nothing or cannot be used."""
    import numpy as np
    from PIL import Image, ImageCms

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() != _SPACES[mode]:
            return None
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (OSError, ValueError, ImageCms.PyCMSError):
        return None
    if mode == "CMYK":
        return transform
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    samples = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
    if mode == "L":
        samples = levels[None, :, None].repeat(3, axis=-1)
    before = Image.fromarray(samples)
    after = ImageCms.applyTransform(before if mode == "RGB" else before.getchannel("R"), transform)
    # most profiles are sRGB under some name: then the pixels stay exactly as they are
    return None if np.abs(np.asarray(after).astype(int) - samples).max() <= 1 else transform
