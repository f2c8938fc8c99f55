"""Check the images that go into shards, and re-encode those that are not JPEG or too large."""

import io

import numpy as np
from PIL import Image

from trainer.shards.write import encode_jpeg

JPEG_FORMATS = ("JPEG", "MPO")  # MPO: a JPEG with further pictures behind it, as some cameras write
ORIENTATION = 0x0112  # EXIF tag; 1 is upright
TURNS = dict(enumerate(("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE"), 2))
TURNS |= dict(enumerate(("ROTATE_270", "TRANSVERSE", "ROTATE_90"), 6))


class BrokenImage(ValueError):
    """An image that cannot be decoded, and why."""


def decode(encoded: bytes, glance: bool = False) -> Image.Image:
    """An image with its pixels.

    Args:
        glance: take JPEGs at an eighth of their size: every byte is read all the same, in half the time.

    Raises:
        BrokenImage: if it is empty, cut short, damaged or no image.
    """
    if not encoded:
        raise BrokenImage("empty file")
    try:
        image = Image.open(io.BytesIO(encoded))
        if glance:
            image.draft(None, (1, 1))
        image.load()
    except Exception as error:  # Pillow raises whatever its format plugins do, SyntaxError and struct.error included
        reason = "not an image" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise BrokenImage(reason) from None
    return image


def as_jpeg(encoded: bytes, shorter_side: int | None = None, quality: int = 95) -> bytes:
    """JPEG bytes of any image; what is JPEG and small enough stays as it is, byte for byte.

    Args:
        shorter_side: the largest allowed, in pixels; smaller images are not enlarged. None keeps sizes.

    Raises:
        BrokenImage: if it cannot be decoded.
    """
    image = decode(encoded, glance=shorter_side is None)
    turn = _turn(image)
    large = shorter_side is not None and min(image.size) > shorter_side
    if image.format in JPEG_FORMATS and not large and not (turn and shorter_side):
        return encoded
    try:
        upright = _eight_bits(image).convert("RGB")
        if turn:
            upright = upright.transpose(Image.Transpose[turn])
        if shorter_side is not None and large:
            scale = shorter_side / min(upright.size)
            width, height = (max(shorter_side, round(side * scale)) for side in upright.size)
            upright = upright.resize((width, height), Image.Resampling.LANCZOS)
        return encode_jpeg(upright, quality)
    except (OSError, ValueError) as error:
        raise BrokenImage(str(error)) from None


def _turn(image: Image.Image) -> str | None:
    """What makes an image upright; one whose EXIF is damaged is shown as it is stored."""
    try:
        return TURNS.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # Pillow parses EXIF only now, and raises SyntaxError, struct.error and others
        return None


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit gray scaled to 8 bits, where Pillow would clip it to white."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).astype(np.int64) // 256).clip(0, 255).astype(np.uint8))
