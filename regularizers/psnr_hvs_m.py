"""Reciprocal of the PSNR-HVS-M of heatmap against image."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from regularizers.base import Regularizer, tunable
from regularizers.functional import (
    BLOCK,
    Images,
    blocks,
    dct,
    luma,
    masking,
    minmax_scale,
    reciprocal_psnr,
    safe_sqrt,
    visibility,
)


@dataclass(frozen=True, kw_only=True)
class PsnrHvsM(Regularizer):
    """1 / PSNR-HVS-M: PSNR-HVS with differences hidden by the block's own contrast taken out.

    distance = 1 / PSNR-HVS as in `psnr_hvs_dct`, but every coefficient difference except the block mean's is first
    reduced by the masking threshold of the block, t / mask, and only what exceeds it counts. Pulls the heatmap towards
    the image where a difference would not be hidden by texture.

    References:
        Ponomarenko, Silvestri, Egiazarian, Carli, Astola, Lukin: On between-coefficient contrast masking of
        DCT basis functions. VPQM 2007. Tables from the JPEG luminance table (`regularizers.functional`).
    """

    weight: float = tunable(0.5, 0.1, 1000.0)

    def formula(self, heatmap: Images, images: Images) -> Float[Tensor, " b"]:
        x, y = luma(minmax_scale(heatmap)), luma(minmax_scale(images))
        return reciprocal_psnr(masked_error(x, y).mean(dim=1))


def masked_error(x: Images, y: Images) -> Float[Tensor, "b p"]:
    """Mean squared visible and unmasked error of each plane; -10·log10 of it is the PSNR-HVS-M in dB."""
    a, b = blocks(x), blocks(y)
    transformed_a, transformed_b = dct(a), dct(b)
    threshold = torch.maximum(_masking_threshold(a, transformed_a), _masking_threshold(b, transformed_b))[
        ..., None, None
    ]
    mask = masking(x)
    mask[0, 0] = 1
    difference = (transformed_a - transformed_b).abs()
    hidden = threshold / mask
    # The mean of a block is never masked.
    hidden = hidden * (torch.arange(BLOCK**2, device=x.device).reshape(BLOCK, BLOCK) > 0)
    return (visibility(x) * (difference - hidden).clamp(min=0)).square().mean(dim=(2, 3, 4))


def _masking_threshold(
    block: Float[Tensor, "b p n 8 8"], transformed: Float[Tensor, "b p n 8 8"]
) -> Float[Tensor, "b p n"]:
    """sqrt(energy of the masking coefficients × (Σ variation of the quarters / variation of the block)) / 32."""
    energy = (masking(block) * transformed.square()).sum(dim=(3, 4))
    whole = _variation(block.flatten(3))
    quarters = block.unflatten(4, (2, BLOCK // 2)).unflatten(3, (2, BLOCK // 2)).transpose(4, 5).flatten(5)
    parts = _variation(quarters).sum(dim=(3, 4))
    flat = whole == 0
    ratio = torch.where(flat, 0.0, parts / torch.where(flat, 1.0, whole))
    return safe_sqrt(energy * ratio) / 32


def _variation(pixels: Float[Tensor, "... n"]) -> Float[Tensor, "..."]:
    """Sample variance × number of pixels."""
    return pixels.var(dim=-1) * pixels.shape[-1]
