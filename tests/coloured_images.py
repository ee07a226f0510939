"""Encoded images for tests of data sets: the preferred ones are green, the rejected ones red."""

import io

from PIL import Image

PREFERRED, REJECTED = (10, 200, 10), (200, 10, 10)


def encode(number, colour, kind="JPEG"):
    """Encode an image that no other number has."""
    file = io.BytesIO()
    image = Image.new("RGB", (48, 32), colour)
    image.paste((number % 256, number // 256, 90), (0, 0, 24, 16))
    image.save(file, kind, quality=95)
    return file.getvalue()


def is_green(image):
    """Whether an image is one that is preferred."""
    red, green, _ = image.getpixel((40, 28))
    return green > 150 > red
