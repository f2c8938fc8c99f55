"""8x8 block transform and the two visibility tables of the PSNR-HVS family."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from regularizers._images import Images, require_size

BLOCK = 8
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
# Luminance quantisation of ITU-T T.81 (JPEG) Annex K, table K.1.
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
