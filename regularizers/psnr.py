"""Reciprocal of the PSNR of heatmap against image."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from regularizers.base import Regularizer, tunable
from regularizers.functional import Images, minmax_scale, reciprocal_psnr


@dataclass(frozen=True, kw_only=True)
class Psnr(Regularizer):
    """1 / PSNR of heatmap and image, each scaled to [0, 1].

    distance = 1 / (10·log10(1/MSE)) in 1/dB, MSE as in `mse`. Pulls the heatmap towards the image. An equal
    pair (infinite PSNR) counts 0.

    References:
        google-research/optimizing_interpretability, "peak signal-to-noise ratio".
    """

    weight: float = tunable(0.5, 0.1, 1000.0)

    def formula(self, heatmap: Images, images: Images) -> Float[Tensor, " b"]:
        return reciprocal_psnr((minmax_scale(heatmap) - minmax_scale(images)).square().mean(dim=(1, 2, 3)))
