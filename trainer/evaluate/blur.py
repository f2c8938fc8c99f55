"""Blurs by one model of a camera, so that a radius well below a pixel means something and small images need no table.

Pixels are squares of constant color, light spreads in the continuous plane, and each pixel of the result is the mean
over its square. The kernel is then the point spread convolved with the triangle (1 - |x|)(1 - |y|), whose variance of
1/6 square pixels is what it adds to a blur sampled at pixel centers.
"""

from functools import lru_cache
from math import ceil

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Kernel = Float[Tensor, "k k"]
POINTS = 64  # across a disk: its weights are right to 0.1 % of its area
STEP = 0.25  # pixels between the points of a line
TRUNCATE = 4  # standard deviations
FAST = 32  # a multiple of it is a good length for the Fourier transform


def convolve(planes: Float[Tensor, "c h w"], kernel: Kernel) -> Float[Tensor, "c h w"]:
    """Planes blurred; beyond the border the outermost pixels go on.

    Args:
        planes: images of any unit.
        kernel: distribution of a pixel's light, of odd size with the pixel itself in the middle.
    """
    reach = len(kernel) // 2
    padded = F.pad(planes, (reach, reach, reach, reach), mode="replicate")
    # A tenth of the time of conv2d, whose cost grows with the kernel's area.
    height, width = (ceil(side / FAST) * FAST for side in padded.shape[1:])
    spectrum = torch.fft.rfft2(padded, s=(height, width)) * torch.fft.rfft2(kernel, s=(height, width))
    blurred = torch.fft.irfft2(spectrum, s=(height, width))
    return blurred[:, 2 * reach : padded.shape[1], 2 * reach : padded.shape[2]]


@lru_cache(maxsize=64)
def gaussian(sigma: float) -> Kernel:
    """Kernel of a normal distribution.

    Args:
        sigma: standard deviation in pixels, above 0.
    """
    x = torch.arange(-ceil(TRUNCATE * sigma) - 2, ceil(TRUNCATE * sigma) + 3, dtype=torch.float64)
    # The triangle is the second difference of a ramp; this is the ramp convolved with the distribution.
    ramp = x * torch.special.ndtr(x / sigma) + sigma * torch.exp(-0.5 * (x / sigma) ** 2) / (2 * torch.pi) ** 0.5
    weights = ramp.diff().diff()
    weights /= weights.sum()
    return torch.outer(weights, weights).float()


@lru_cache(maxsize=64)
def disk(radius: float) -> Kernel:
    """Kernel of a uniform disk, as of a lens out of focus.

    Args:
        radius: radius in pixels.
    """
    along = (torch.arange(POINTS, dtype=torch.float64) + 0.5) * 2 / POINTS - 1
    y, x = torch.meshgrid(along, along, indexing="ij")
    inside = y**2 + x**2 <= 1
    return _spread(radius * y[inside], radius * x[inside], torch.ones_like(y[inside]))


def line(length: float, sigma: float, angle: float, scale: float = 1.0) -> Kernel:
    """Kernel of a motion: half a normal distribution, from the pixel on along a line.

    Args:
        length: length of the line, in pixels.
        sigma: standard deviation in pixels.
        angle: direction in radians, from rightwards to downwards.
        scale: factor on both lengths.
    """
    along = torch.arange(0, length + STEP, STEP, dtype=torch.float64)
    y, x = (scale * along * torch.sin(torch.tensor(angle)), scale * along * torch.cos(torch.tensor(angle)))
    return _spread(y, x, torch.exp(-0.5 * (along / sigma) ** 2))


def _spread(y: Float[Tensor, " n"], x: Float[Tensor, " n"], weights: Float[Tensor, " n"]) -> Kernel:
    """Kernel of points at offsets in pixels, each shared by its four nearest pixels in bilinear proportion."""
    reach = int(max(y.abs().max(), x.abs().max())) + 1
    kernel = torch.zeros(2 * reach + 1, 2 * reach + 1, dtype=torch.float64)
    for row in (y.floor(), y.floor() + 1):
        for column in (x.floor(), x.floor() + 1):
            share = (1 - (y - row).abs()) * (1 - (x - column).abs())
            kernel.index_put_((row.long() + reach, column.long() + reach), weights * share, accumulate=True)
    return (kernel / kernel.sum()).float()
