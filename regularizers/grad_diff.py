"""Distance of the forward differences of heatmap and image."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from regularizers.base import Regularizer, tunable
from regularizers.functional import Images, differences, minmax_scale, safe_sqrt


@dataclass(frozen=True, kw_only=True)
class GradDiff(Regularizer):
    """Euclidean distance of the forward differences of heatmap and image, each scaled to [0, 1].

    distance = sqrt(Σ (Δ_rows d)² + Σ (Δ_columns d)²), d = scaled(heatmap) - scaled(image). The original's text says
    squared, its code takes the root of the sum of each example; this follows the code. Pulls the heatmap's
    local contrasts towards the image's.

    References:
        google-research/optimizing_interpretability, "gradient difference".
    """

    weight: float = tunable(0.5, 0.1, 1000.0)

    def formula(self, heatmap: Images, images: Images) -> Float[Tensor, " b"]:
        down, along = differences(minmax_scale(heatmap) - minmax_scale(images))
        return safe_sqrt(down.square().sum(dim=(1, 2, 3)) + along.square().sum(dim=(1, 2, 3)))
