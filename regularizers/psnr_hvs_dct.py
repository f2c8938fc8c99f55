"""Reciprocal of the DCT-based PSNR-HVS of heatmap against image."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from regularizers.base import Regularizer, tunable
from regularizers.functional import Images, blocks, dct, luma, minmax_scale, reciprocal_psnr, visibility


@dataclass(frozen=True, kw_only=True)
class PsnrHvsDct(Regularizer):
    """1 / PSNR-HVS of the luminance of heatmap and image, each scaled to [0, 1].

    distance = 1 / (10·log10(1/D)), D = mean over 8x8 blocks and coefficients of (visibility·(X - Y))², X and Y
    orthonormal DCTs. Images that are not RGB are averaged over their planes. Pulls the heatmap towards the image, most
    where the eye sees a difference.

    References:
        Egiazarian, Astola, Ponomarenko, Lukin, Battisti, Carli: New full-reference quality metrics based on
        HVS. VPQM 2006. Visibility from the JPEG luminance table (`regularizers.functional`).
    """

    weight: float = tunable(0.5, 0.1, 1000.0)

    def formula(self, heatmap: Images, images: Images) -> Float[Tensor, " b"]:
        x, y = luma(minmax_scale(heatmap)), luma(minmax_scale(images))
        return reciprocal_psnr(visible_error(x, y).mean(dim=1))


def visible_error(x: Images, y: Images) -> Float[Tensor, "b p"]:
    """Mean squared visible error of each plane; -10·log10 of it is the PSNR-HVS in dB."""
    return (visibility(x) * dct(blocks(x - y))).square().mean(dim=(2, 3, 4))
