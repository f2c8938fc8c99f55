"""What several penalties share: scaling to [0, 1], differences and edges, SSIM windows, 8x8 DCT blocks, decibels.

Each function is finite, and has a finite gradient, where its textbook form divides by zero.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Images = Float[Tensor, "b c h w"]
Planes = Float[Tensor, "... h w"]

WINDOW, WINDOW_DEVIATION = 11, 1.5  # pixels, of SSIM's Gaussian windows
C1, C2 = 0.01**2, 0.03**2  # keep SSIM's quotients from dividing by zero, for images with peak 1
MIN_DECIBEL = 0.01  # 1/PSNR has a pole at 0 dB; no natural pair comes near, a binary complement sits on it
BLOCK = 8
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
# Luminance quantization of ITU-T T.81 (JPEG) Annex K, table K.1.
_STEPS = torch.tensor([
    [16, 11, 10, 16, 24, 40, 51, 61],
    [12, 12, 14, 19, 26, 58, 60, 55],
    [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62],
    [18, 22, 37, 56, 68, 109, 103, 77],
    [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101],
    [72, 92, 95, 98, 112, 100, 103, 99],
], dtype=torch.float64)  # fmt: skip


def minmax_scale(images: Images) -> Images:
    """Each example to [0, 1] by its minimum and maximum over channels, rows and columns together.

    The gradient flows through minimum and maximum, ties share it evenly. A constant example becomes 0
    everywhere, with zero gradient.
    """
    low = images.amin(dim=(1, 2, 3), keepdim=True)
    span = images.amax(dim=(1, 2, 3), keepdim=True) - low
    constant = span == 0
    return torch.where(constant, 0.0, (images - low) / torch.where(constant, 1.0, span))


def differences(planes: Planes) -> tuple[Float[Tensor, "... h-1 w"], Float[Tensor, "... h w-1"]]:
    """Forward differences down the rows `(…, h-1, w)` and along the columns `(…, h, w-1)`."""
    return planes.diff(dim=-2), planes.diff(dim=-1)


def total_variation(planes: Images) -> Float[Tensor, " b"]:
    """Sum of absolute forward differences over everything but the batch."""
    down, along = differences(planes)
    return down.abs().sum(dim=(1, 2, 3)) + along.abs().sum(dim=(1, 2, 3))


def sobel(planes: Planes) -> tuple[Planes, Planes]:
    """Sobel responses (vertical, horizontal) with kernels ±1, ±2, ±1 unscaled and mirrored borders.

    Written with slices: the backward pass of reflect padding has no deterministic CUDA kernel.

    Raises:
        ValueError: if a side is shorter than 2 pixels (nothing to mirror).
    """
    require_size(planes, 2, "Sobel edges")
    rows = torch.cat([planes[..., 1:2, :], planes, planes[..., -2:-1, :]], dim=-2)
    padded = torch.cat([rows[..., 1:2], rows, rows[..., -2:-1]], dim=-1)
    smooth_along = padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]
    smooth_down = padded[..., :-2, :] + 2 * padded[..., 1:-1, :] + padded[..., 2:, :]
    return (
        smooth_along[..., 2:, :] - smooth_along[..., :-2, :],
        smooth_down[..., 2:] - smooth_down[..., :-2],
    )


def safe_sqrt(values: Tensor) -> Tensor:
    """Square root whose gradient at 0 is 0 instead of infinite."""
    zero = values == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, values).sqrt())


def require_size(images: Tensor, smallest: int, what: str) -> None:
    """Raise a ValueError that names the smallest side `what` can work on."""
    height, width = images.shape[-2:]
    if min(height, width) < smallest:
        raise ValueError(f"{what} needs images of at least {smallest}x{smallest} pixels, got {height}x{width}")


def structural_similarity(
    x: Images, y: Images, average: Callable[[Images], Tensor], c2: float = C2
) -> Float[Tensor, " b"]:
    """SSIM in [-1, 1] of two images with peak 1, mean over windows and channels.

    Args:
        x: first image `(b, c, h, w)` in [0, 1].
        y: second image, likewise.
        average: takes the weighted mean over each window.
        c2: stabilizer of the contrast term.

    References:
        Wang, Bovik, Sheikh, Simoncelli: Image Quality Assessment: From Error Visibility to Structural
        Similarity. IEEE Transactions on Image Processing 13(4), 2004, equation 13.
    """
    # The second moments do not see a common shift; around mid gray E[x²] - E[x]² cancels far less in float32.
    x, y = x - 0.5, y - 0.5
    # Apart, since only one side carries a gradient; each in one call.
    mean_x, square_x, product = average(torch.cat([x, x.square(), x * y], dim=1)).chunk(3, dim=1)
    mean_y, square_y = average(torch.cat([y, y.square()], dim=1)).chunk(2, dim=1)
    covariance = 2 * (product - mean_x * mean_y)
    variances = square_x - mean_x.square() + square_y - mean_y.square()
    mean_x, mean_y = mean_x + 0.5, mean_y + 0.5
    luminance = (2 * mean_x * mean_y + C1) / (mean_x.square() + mean_y.square() + C1)
    return (luminance * (covariance + c2) / (variances + c2)).mean(dim=(1, 2, 3))


def gaussian_average(images: Images, deviation: float = WINDOW_DEVIATION) -> Float[Tensor, "b c h-10 w-10"]:
    """Gaussian-weighted mean over each 11x11 window, one axis after the other; the deviation is in pixels."""
    offset = torch.arange(WINDOW, dtype=images.dtype, device=images.device) - WINDOW // 2
    kernel = torch.softmax(-offset.square() / (2 * deviation**2), dim=0)
    # Every plane a channel and a group of its own: CPUs take a tenth of the time that single-channel images cost.
    planes = images.flatten(0, 1)[None]
    groups = planes.shape[1]
    planes = F.conv2d(planes, kernel.expand(groups, 1, WINDOW)[..., None], groups=groups)
    planes = F.conv2d(planes, kernel.expand(groups, 1, 1, WINDOW), groups=groups)
    return planes[0].unflatten(0, images.shape[:2])


def visibility(like: Tensor) -> Float[Tensor, "8 8"]:
    """Contrast sensitivity of each coefficient, in inverse proportion to its JPEG step.

    The scale makes the mean square 1 (that would be 25.735085; the published tables follow from 25.73509) and, as
    published, the entries have six decimals.
    """
    return (25.73509 / _STEPS).round(decimals=6).to(like)


def masking(like: Tensor) -> Float[Tensor, "8 8"]:
    """Weight of each coefficient in the contrast masking: (10 / JPEG step)², six decimals; none of the block's mean."""
    table = (10 / _STEPS).square().round(decimals=6).to(like)
    table[0, 0] = 0
    return table


def luma(images: Images) -> Float[Tensor, "b p h w"]:
    """The luminance plane of RGB images; images of another channel count keep their planes."""
    if images.shape[1] != len(LUMA):
        return images
    # A matrix product would hand back a gradient with the channels last, in which convolutions are slower.
    return (images * images.new_tensor(LUMA)[:, None, None]).sum(dim=1, keepdim=True)


def blocks(planes: Images) -> Float[Tensor, "b p n 8 8"]:
    """Non-overlapping 8x8 blocks; rest rows and columns are dropped."""
    b, p, height, width = planes.shape
    require_size(planes, BLOCK, "PSNR-HVS")
    rows, columns = height // BLOCK, width // BLOCK
    cropped = planes[..., : rows * BLOCK, : columns * BLOCK]
    return cropped.reshape(b, p, rows, BLOCK, columns, BLOCK).transpose(3, 4).flatten(2, 3)


def dct(blocks: Float[Tensor, "b p n 8 8"]) -> Float[Tensor, "b p n 8 8"]:
    """Orthonormal two-dimensional DCT-II of each block."""
    index = torch.arange(BLOCK, dtype=blocks.dtype, device=blocks.device)
    basis = torch.cos(math.pi / BLOCK * index[:, None] * (index + 0.5)) * math.sqrt(2 / BLOCK)
    basis[0] /= math.sqrt(2)
    # One large product instead of two for every little block.
    return (blocks.flatten(-2) @ torch.kron(basis, basis).T).unflatten(-1, (BLOCK, BLOCK))


def reciprocal_psnr(mean_squared_error: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """1 / (10·log10(1/error)) for signals with peak 1.

    At the two ends, an error below the rounding of the data type (PSNR infinite) and one above
    -`MIN_DECIBEL` dB (PSNR zero or negative), the value is held and the gradient is zero.
    """
    lowest = torch.finfo(mean_squared_error.dtype).eps ** 2
    highest = 10 ** (-MIN_DECIBEL / 10)
    decibel = -10 / math.log(10) * mean_squared_error.clamp(lowest, highest).log()
    return torch.where(mean_squared_error == 0, 0.0, 1 / decibel)
