"""Encoded images (PNG, JPEG, WebP, BMP, …) → one array, through Pillow."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable

import numpy as np

from dagscale.bench.data.dataset import Bytes
from dagscale.bench.data.files import EXPANSION, FREE
from dagscale.errors import DataError
from dagscale.shown import reason

GREY = ("1", "L", "LA")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""What is decoded, whatever the file is called: Pillow hands others, as PostScript, to a program that executes them."""

COLOUR = ("RGB", "RGBA", "RGBX", "P", "PA", "CMYK", "YCbCr")


def stack(count: int, encoded: Iterable[tuple[int, str, bytes | None]]) -> Bytes:
    """``count`` images, (count, height, width, channels): RGB, or one channel where all of them are grey.

    Args:
        encoded: each image's place in the result, its name for messages, and its bytes.

    Raises: DataError if one is missing or corrupt, or they differ in size.
    """
    images: Bytes | None = None
    colour = False
    allowed, taken = FREE, 0
    for place, where, data in encoded:
        allowed += EXPANSION * len(data or b"")
        image, coloured = _decode(data, where, allowed - taken)
        taken += image.size
        colour |= coloured
        if images is None:
            images = np.empty((count, *image.shape), dtype=np.uint8)
        if image.shape != images.shape[1:]:
            sizes = " and ".join(f"{s[1]}×{s[0]}" for s in (image.shape, images.shape[1:]))
            raise DataError(f"{where}: images of different sizes ({sizes} pixels): resize them to one size")
        images[place] = image
    assert images is not None, "no rows are never asked for"
    return images if colour else images[..., :1]


def need_pillow() -> None:
    """Raises: DataError, naming the extra to install, if Pillow is missing."""
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise DataError("reading encoded images needs Pillow: pip install dagscale[images]") from error


def _decode(encoded: bytes | None, where: str, allowed: int) -> tuple[Bytes, bool]:
    """(height, width, 3) pixels of one encoded image, and whether it has colour.

    Args:
        allowed: bytes that it may unpack to.

    Raises: DataError, naming ``where``, if it is missing, corrupt, larger, or not of 8 bits a channel.
    """
    from PIL import Image, UnidentifiedImageError

    if not encoded:
        raise DataError(f"{where} holds no image bytes")
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            warnings.simplefilter("ignore")
            mode = image.mode
            if 3 * image.width * image.height > allowed:
                raise DataError(
                    f"{where} has {image.width:,}×{image.height:,} pixels in {len(encoded):,} bytes: it is made to "
                    "fill the memory; if not, save the images in an .npz file"
                )
            pixels = np.asarray(image if mode == "RGB" else image.convert("RGB"))
    except DataError:
        raise
    except UnidentifiedImageError:  # which says the address of the bytes
        raise DataError(f"{where}: corrupt image bytes: cannot identify any of {', '.join(FORMATS)}") from None
    except Exception as error:  # Pillow's decoders raise a dozen unrelated types on corrupt bytes
        raise DataError(f"{where}: corrupt image bytes: {reason(error)}") from error
    if mode not in GREY and mode not in COLOUR:
        raise DataError(f"{where}: image mode {mode} is not 8 bits a channel: convert it to RGB or L")
    return pixels, mode in COLOUR
