"""Encoded image to network input: decode, crop, resize, flip.

The windows and the bicubic kernel are the original TensorFlow pipeline's; what differs is said in `Transform`.
"""

import io
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from math import sqrt
from random import Random

import simplejpeg
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn.functional import embedding_bag, pad

from trainer.errors import FieldError

CROP_PADDING = 32  # pixels that the evaluation's window leaves out, at the output's scale
AREAS = (0.08, 1.0)  # of a random window, fractions of the image …
COVERED = 0.1  # … of which the original redraws those below this one
RATIOS = (3 / 4, 4 / 3)  # width / height
TRIES = 10
SMALL = 64  # pixels: square images up to here are thumbnails (CIFAR, digits), shown whole
SHIFT = 4  # pixels a thumbnail moves by at most
MAX_PIXELS = 2**26  # pixels of an image; more is a mistake or an attack on memory

Window = tuple[int, int, int, int]  # top, left, height, width in pixels


class DecodeError(ValueError):
    """Bytes that are no whole JPEG, PNG or WebP image; the message says what is wrong with them."""


@dataclass(frozen=True)
class Transform:
    """Encoded image to pixels of one size; picklable, and a function of the bytes and the generator alone.

    Training shows a random window (10–100 % of the area, aspect ratio 3/4–4/3), evaluation the central one; both are
    resized by the bicubic kernel without antialiasing and rounded to whole gray levels in [0, 255]. Images of the
    output's size already and square ones of at most 64 pixels are shown whole: in training moved by up to 4 pixels
    over black, in evaluation as they are.

    Differences to the original: it does not flip; it keeps fractions and the kernel's overshoot (on two photographs
    what rounding and clipping change is 0.24 gray levels in the mean and 16 at most; a value takes a quarter of the
    memory); its grayscale files never fall back to the central window. Orientation in EXIF is ignored, as there and
    in torchvision.

    Args:
        size: side of the output in pixels; None keeps each image's own height and width.
        train: random windows and flips, or what evaluation sees.
        flip: whether training mirrors half of the images; leave it off where a mirror image is another class (digits).
    """

    size: int | None
    train: bool
    flip: bool = True

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise FieldError(
                "image_size", self.size, "give the side in pixels, at least 1, or none for the images' own"
            )

    def __call__(self, encoded: bytes, random: Random) -> UInt8[Tensor, "3 h w"]:
        """Pixels, channels red, green, blue.

        Args:
            encoded: JPEG, PNG or WebP file.
            random: randomness of this sample alone, as `Random(f"{seed}/{epoch}/{key}")`, so that skipped samples
                need no decoding.

        Raises:
            DecodeError: if the bytes are no whole image.
        """
        pixels = decode(encoded)
        height, width, _ = pixels.shape
        if self.size is None or (height == width and (height <= SMALL or height == self.size)):
            if self.train:
                top, left = random.randint(0, 2 * SHIFT), random.randint(0, 2 * SHIFT)
                pixels = pad(pixels, (0, 0, SHIFT, SHIFT, SHIFT, SHIFT))[top : top + height, left : left + width]
        else:
            window = random_window(height, width, random) if self.train else None
            top, left, height, width = window or central_window(height, width, self.size)
            pixels = pixels[top : top + height, left : left + width]
        flip = self.train and self.flip and random.random() < 0.5
        return resize(pixels, self.size or height, self.size or width, flip)


def decode(encoded: bytes) -> UInt8[Tensor, "h w 3"]:
    """Red, green and blue of a JPEG, PNG or WebP file; of an animation, its first picture.

    Grayscale is repeated, CMYK converted without color profile, alpha dropped, the low byte of 16 bits cut off;
    the orientation in EXIF is ignored.

    Raises:
        DecodeError: if the bytes are none of these, truncated, damaged or an image of more than 67 megapixels.
    """
    if encoded.startswith(b"\xff\xd8"):
        with suppress(ValueError):  # Pillow decides on irregular files
            height, width, colors, _ = simplejpeg.decode_jpeg_header(encoded)
            if colors in ("YCbCr", "Gray", "RGB") and height * width <= MAX_PIXELS:  # its CMYK is not the original's
                return torch.from_numpy(simplejpeg.decode_jpeg(encoded, "RGB"))
    try:
        # Other formats are not for bytes from strangers: for some, Pillow starts programs.
        with Image.open(io.BytesIO(encoded), formats=("JPEG", "PNG", "WEBP")) as image:
            if image.height * image.width > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels are more than {MAX_PIXELS}")
            image.info.pop("transparency", None)
            if image.mode.startswith("I"):  # 16 bits of gray, which `convert` would clip at 255
                rgb = image.convert("I").point(lambda value: value / 256).convert("L").convert("RGB")
            else:
                rgb = image.convert("RGB")
    except UnidentifiedImageError:
        raise DecodeError(f"neither JPEG, PNG nor WebP: {len(encoded)} bytes that start with {encoded[:8]!r}") from None
    except Exception as error:  # on damaged files also SyntaxError, struct.error, IndexError …
        raise DecodeError(f"image of {len(encoded)} bytes cannot be decoded: {error}") from error
    return torch.frombuffer(bytearray(rgb.tobytes()), dtype=torch.uint8).view(rgb.height, rgb.width, 3)


def central_window(height: int, width: int, size: int) -> Window:
    """The square in the middle that becomes size x size pixels, with 32 more around it if it were not cropped."""
    side = max(1, size * min(height, width) // (size + CROP_PADDING))
    return (height - side + 1) // 2, (width - side + 1) // 2, side, side


def random_window(height: int, width: int, random: Random) -> Window | None:
    """A random part of the image, drawn as TensorFlow does: the aspect ratio uniformly, then the height uniformly.

    Returns:
        None where ten draws gave none inside the image or the last gave all of it: the central window is used.
    """
    area = height * width
    for _ in range(TRIES):
        ratio = random.uniform(*RATIOS)
        low, high = (round(sqrt(fraction * area / ratio)) for fraction in AREAS)
        high = min(high, height, int((width + 0.5) / ratio))
        rows = random.randint(min(low, high), high)
        columns = round(rows * ratio)
        if columns <= width and COVERED * area <= rows * columns <= area:
            if (rows, columns) == (height, width):
                return None
            return random.randint(0, height - rows), random.randint(0, width - columns), rows, columns
    return None


def resize(
    pixels: UInt8[Tensor, "h w 3"], height: int, width: int, flip: bool = False
) -> UInt8[Tensor, "3 {height} {width}"]:
    """Bicubic resize (Keys, a = −0.5, pixel centers at halves, no antialiasing), rounded and clipped to [0, 255].

    Args:
        flip: whether left and right change places.
    """
    rows, columns, _ = pixels.shape
    if (rows, columns) == (height, width):
        return (pixels.flip(1) if flip else pixels).permute(2, 0, 1).contiguous()
    # A weighted sum of four rows for each row of the output is what embedding_bag does in one pass over memory.
    taps, weights = _kernel(rows, height)
    lines = embedding_bag(taps, pixels.reshape(rows, -1).float(), mode="sum", per_sample_weights=weights)
    lines = lines.view(height, columns, 3).permute(1, 2, 0).reshape(columns, 3 * height)
    taps, weights = _kernel(columns, width)
    if flip:
        taps, weights = taps.flip(0), weights.flip(0)
    resized = embedding_bag(taps, lines, mode="sum", per_sample_weights=weights)
    return resized.round_().clamp_(0, 255).to(torch.uint8).view(width, 3, height).permute(1, 2, 0).contiguous()


@lru_cache(maxsize=512)
def _kernel(source: int, target: int) -> tuple[Int[Tensor, "{target} 4"], Float[Tensor, "{target} 4"]]:
    """The four source pixels of each target pixel and their weights; beyond the border there is nothing."""
    centers = (torch.arange(target, dtype=torch.float64) + 0.5) * source / target - 0.5
    taps = centers.floor().to(torch.int64)[:, None] + torch.arange(-1, 3)
    far = (centers[:, None] - taps).abs()
    weights = torch.where(far < 1, (1.5 * far - 2.5) * far**2 + 1, ((-0.5 * far + 2.5) * far - 4) * far + 2)
    weights = weights * ((taps >= 0) & (taps < source) & (far < 2))
    weights /= weights.sum(1, keepdim=True)
    return taps.clamp(0, source - 1), weights.float()
