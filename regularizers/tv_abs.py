"""Total variation of the heatmap's magnitude over the image's contrast."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from regularizers.base import Regularizer, tunable
from regularizers.functional import Images, safe_sqrt, total_variation


@dataclass(frozen=True, kw_only=True)
class TvAbs(Regularizer):
    """Total variation of Σ_c |heatmap| divided by the image's standard deviation.

    distance = Σ_c TV(m) / σ_c with m = Σ_c |heatmap| and σ_c the population standard deviation of channel c
    of the **image** over rows and columns. As in the original code it is the image's deviation, not the
    heatmap's, and the one-channel map is counted once per image channel. A constant image channel, which
    has no contrast to divide by, adds nothing. Pulls the heatmap's magnitude towards piecewise constant, least for
    images of high contrast.

    References:
        google-research/optimizing_interpretability, "absolute total variation", scaled.
    """

    weight: float = tunable(0.5, 0.1, 1000.0)

    def formula(self, heatmap: Images, images: Images) -> Float[Tensor, " b"]:
        magnitude = heatmap.abs().sum(dim=1, keepdim=True)
        deviation = safe_sqrt(images.var(dim=(2, 3), correction=0))
        flat = deviation == 0
        contrast = torch.where(flat, 0.0, 1 / torch.where(flat, 1.0, deviation))
        return total_variation(magnitude) * contrast.sum(dim=1)
