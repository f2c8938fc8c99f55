"""Pixel-wise distance of heatmap and image."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from regularizers.base import Regularizer, tunable
from regularizers.functional import Images, minmax_scale


@dataclass(frozen=True, kw_only=True)
class Mse(Regularizer):
    """Mean squared difference of heatmap and image, each scaled to [0, 1].

    distance = mean over c, h, w of (scaled(heatmap) - scaled(image))². The scaling uses minimum and maximum over
    all channels, so a signed heatmap's zero becomes a mid gray. Pulls the heatmap towards the image.

    References:
        google-research/optimizing_interpretability, "reference-point regularizers".
    """

    weight: float = tunable(0.5, 0.1, 1000.0)

    def formula(self, heatmap: Images, images: Images) -> Float[Tensor, " b"]:
        return (minmax_scale(heatmap) - minmax_scale(images)).square().mean(dim=(1, 2, 3))
