"""Common corruptions: noise, blur, weather and digital ones, each at five severities.

The families and the severities are those of ImageNet-C, in code of our own, and the results are not ImageNet-C: compare
them with each other, not with published error rates. What differs:

* frost (it needs photographs of ice), glass and zoom blur and elastic transform are left out; gaussian blur, which
  ImageNet-C holds back for validation, is in;
* lengths are in pixels of an image whose shorter side is 224 and shrink or grow with it: a thumbnail is treated as the
  same scene at a lower resolution, not by the separate tables that were published for CIFAR and Tiny ImageNet;
* the blurs integrate over pixels (`trainer.evaluate.blur`), fog is a sum of smooth noise in place of a plasma fractal,
  gray levels are rounded and not truncated, and the result is not stored as JPEG.

Everything is a function of pixels, severity and a CPU generator. Give every example a generator of its own, and what it
gets depends on no other; with the same seed for each severity the same specks only grow stronger.

References:
    Hendrycks, Dietterich: Benchmarking Neural Network Robustness to Common Corruptions and Perturbations. ICLR 2019;
    severities as in its code, github.com/hendrycks/robustness, ImageNet-C/imagenet_c/imagenet_c/corruptions.py.
"""

import io
from collections.abc import Callable, Sequence
from math import ceil, pi
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Generator, Tensor

from trainer.evaluate.blur import convolve, disk, gaussian, line
from trainer.preprocess import decode

Pixels = UInt8[Tensor, "3 h w"]  # gray levels in [0, 255], before normalization
Corruption = Callable[[Pixels, int, Generator], Pixels]
Parameter = TypeVar("Parameter")
SIDE = 224  # pixels of the shorter side that lengths refer to
LUMA = (0.299, 0.587, 0.114)


def gaussian_noise(pixels: Pixels, severity: int, generator: Generator) -> Pixels:
    """Normal noise; deviation in pixel fractions of 1."""
    std = _at(severity, (0.08, 0.12, 0.18, 0.26, 0.38))
    return _levels(_fractions(pixels) + std * torch.randn(pixels.shape, generator=generator))


def shot_noise(pixels: Pixels, severity: int, generator: Generator) -> Pixels:
    """Poisson noise of few photons; number that make white."""
    photons = _at(severity, (60, 25, 12, 5, 3))
    return _levels(torch.poisson(_fractions(pixels) * photons, generator=generator) / photons)


def impulse_noise(pixels: Pixels, severity: int, generator: Generator) -> Pixels:
    """Salt and pepper, half and half, in each channel on its own; fraction of values replaced."""
    amount = _at(severity, (0.03, 0.06, 0.09, 0.17, 0.27))
    draws = torch.rand(pixels.shape, generator=generator)
    return pixels.masked_fill(draws < amount / 2, 0).masked_fill(draws >= 1 - amount / 2, 255)


def gaussian_blur(pixels: Pixels, severity: int, generator: Generator) -> Pixels:
    """Normal spread; deviation in pixels of 224."""
    return _blurred(pixels, gaussian(_scale(pixels) * _at(severity, (1, 2, 3, 4, 6))))


def defocus_blur(pixels: Pixels, severity: int, generator: Generator) -> Pixels:
    """A lens out of focus; radius of the disk in pixels of 224."""
    return _blurred(pixels, disk(_scale(pixels) * _at(severity, (3, 4, 6, 8, 10))))


def motion_blur(pixels: Pixels, severity: int, generator: Generator) -> Pixels:
    """Motion to the right, up to 45° up or down; length and deviation of its half normal trace in pixels of 224."""
    length, sigma = _at(severity, ((20.0, 3.0), (30.0, 5.0), (30.0, 8.0), (30.0, 12.0), (40.0, 15.0)))
    return _blurred(pixels, line(length, sigma, _angle(generator, -pi / 4, pi / 4), _scale(pixels)))


def brightness(pixels: Pixels, severity: int, generator: Generator) -> Pixels:
    """Value of hue, saturation and value raised up to 1; by pixel fractions of 1."""
    raised = _at(severity, (0.1, 0.2, 0.3, 0.4, 0.5))
    fractions = _fractions(pixels)
    value = fractions.amax(dim=0, keepdim=True)
    bright = (value + raised).clamp(max=1)
    # Hue and saturation stay as they are if all three colors grow by one factor; black has neither.
    return _levels(torch.where(value == 0, bright, fractions / value.clamp(min=1 / 255) * bright))


def fog(pixels: Pixels, severity: int, generator: Generator) -> Pixels:
    """A bright veil, thick and thin; its weight, and by how much each finer octave of it is weaker."""
    weight, decay = _at(severity, ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4)))
    fractions = _fractions(pixels)
    _, height, width = pixels.shape
    side = max(height, width)
    veil = torch.zeros(side, side)
    for octave in range(max(1, side.bit_length() - 1)):  # down to cells of one to two pixels
        corners = torch.rand(1, 1, 2 ** (octave + 1) + 1, 2 ** (octave + 1) + 1, generator=generator)
        veil += decay**-octave * F.interpolate(corners, (side, side), mode="bilinear", align_corners=True)[0, 0]
    veil = (veil - veil.min()) / (veil.max() - veil.min()).clamp(min=1e-6)
    white = fractions.max()
    return _levels((fractions + weight * veil[:height, :width]) * white / (white + weight))


def snow(pixels: Pixels, severity: int, generator: Generator) -> Pixels:
    """Flakes that fall slantwise, before a scene that is whiter.

    The flakes are drawn at 224 pixels and shown at the resolution of the image. Mean of the field they are cut from
    (its deviation is 0.3), size of its grains in pixels, what it must exceed to be a flake; length and deviation of the
    trace in pixels; how much of the scene keeps its color.
    """
    mean, grain, threshold, length, sigma, keep = _at(
        severity,
        (
            (0.1, 3.0, 0.5, 20.0, 4.0, 0.8),
            (0.2, 2.0, 0.5, 24.0, 4.0, 0.7),
            (0.55, 4.0, 0.9, 24.0, 8.0, 0.7),
            (0.55, 4.5, 0.85, 24.0, 8.0, 0.65),
            (0.55, 2.5, 0.85, 24.0, 12.0, 0.55),
        ),
    )
    fractions = _fractions(pixels)
    height, width = (round(side / _scale(pixels)) for side in pixels.shape[1:])
    field = mean + 0.3 * torch.randn(1, 1, ceil(height / grain), ceil(width / grain), generator=generator)
    field = F.interpolate(field, (height, width), mode="bilinear", align_corners=True)[0]
    flakes = field.clamp(max=1).masked_fill(field < threshold, 0)
    flakes = convolve(flakes, line(length, sigma, _angle(generator, pi / 4, 3 * pi / 4)))
    flakes = flakes + flakes.flip(1, 2)
    flakes = F.interpolate(flakes[None], pixels.shape[1:], mode="bilinear", antialias=True)[0]
    gray = (fractions * torch.tensor(LUMA)[:, None, None]).sum(dim=0)
    scene = torch.lerp(fractions.maximum(1.5 * gray + 0.5), fractions, keep)
    return _levels(scene + flakes)


def contrast(pixels: Pixels, severity: int, generator: Generator) -> Pixels:
    """Every channel drawn towards its mean; fraction of the contrast left."""
    left = _at(severity, (0.4, 0.3, 0.2, 0.1, 0.05))
    fractions = _fractions(pixels)
    return _levels(torch.lerp(fractions.mean(dim=(1, 2), keepdim=True), fractions, left))


def pixelate(pixels: Pixels, severity: int, generator: Generator) -> Pixels:
    """Mosaic: shrunk and enlarged by Pillow's box filter; fraction of the side left in between."""
    left = _at(severity, (0.6, 0.5, 0.4, 0.3, 0.25))
    _, height, width = pixels.shape
    small = max(1, int(width * left)), max(1, int(height * left))
    mosaic = _picture(pixels).resize(small, Image.Resampling.BOX).resize((width, height), Image.Resampling.BOX)
    return torch.from_numpy(np.array(mosaic)).permute(2, 0, 1).contiguous()


def jpeg(pixels: Pixels, severity: int, generator: Generator) -> Pixels:
    """Compressed by Pillow; quality as libjpeg counts it."""
    buffer = io.BytesIO()
    _picture(pixels).save(buffer, "JPEG", quality=_at(severity, (25, 18, 15, 10, 7)))
    return decode(buffer.getvalue()).permute(2, 0, 1).contiguous()


SEVERITIES = range(1, 6)
FAMILIES: dict[str, tuple[Corruption, ...]] = {
    "noise": (gaussian_noise, shot_noise, impulse_noise),
    "blur": (gaussian_blur, defocus_blur, motion_blur),
    "weather": (brightness, fog, snow),
    "digital": (contrast, pixelate, jpeg),
}
CORRUPTIONS: dict[str, Corruption] = {
    corruption.__name__: corruption for family in FAMILIES.values() for corruption in family
}


def _at(severity: int, table: Sequence[Parameter]) -> Parameter:
    """The entry of a severity.

    Raises:
        ValueError: if there is none; an index of -1 would pass for the last.
    """
    if not 1 <= severity <= len(table):
        raise ValueError(f"severity={severity}: give 1 (mild) to {len(table)} (strong)")
    return table[severity - 1]


def _scale(pixels: Pixels) -> float:
    """Pixels of this image to a pixel of one whose shorter side is 224."""
    return min(pixels.shape[1:]) / SIDE


def _angle(generator: Generator, low: float, high: float) -> float:
    return low + (high - low) * torch.rand((), generator=generator).item()


def _blurred(pixels: Pixels, kernel: Float[Tensor, "k k"]) -> Pixels:
    return _levels(convolve(_fractions(pixels), kernel))


def _fractions(pixels: Pixels) -> Float[Tensor, "3 h w"]:
    return pixels.float() / 255


def _levels(fractions: Float[Tensor, "3 h w"]) -> Pixels:
    return (255 * fractions).round().clamp(0, 255).to(torch.uint8)


def _picture(pixels: Pixels) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())
