"""8x8 block transform and the two visibility tables of the PSNR-HVS family."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from regularizers._images import Images, require_size

BLOCK = 8
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
# Luminance quantisation of ITU-T T.81 (JPEG) Annex K, table K.1.
JPEG_LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)


def visibility(like: Tensor) -> Float[Tensor, "8 8"]:
    """Contrast sensitivity of each coefficient: proportional to 1/JPEG step, mean square 1."""
    inverse = 1 / like.new_tensor(JPEG_LUMINANCE)
    return inverse / inverse.square().mean().sqrt()


def masking(like: Tensor) -> Float[Tensor, "8 8"]:
    """Weight of each coefficient in the contrast masking: (10 / JPEG step)², the mean coefficient left out."""
    table = (10 / like.new_tensor(JPEG_LUMINANCE)).square()
    table[0, 0] = 0
    return table


def luma(images: Images) -> Float[Tensor, "b p h w"]:
    """The luminance plane of RGB images; images of another channel count keep their planes."""
    if images.shape[1] != len(LUMA):
        return images
    return torch.einsum("bchw,c->bhw", images, images.new_tensor(LUMA))[:, None]


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
    return basis @ blocks @ basis.T
