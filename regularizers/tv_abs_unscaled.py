"""Total variation of the heatmap's magnitude."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from regularizers.base import Regularizer, tunable
from regularizers.functional import Images, total_variation


@dataclass(frozen=True, kw_only=True)
class TvAbsUnscaled(Regularizer):
    """Total variation of the one-channel magnitude Σ_c |heatmap|.

    distance = Σ over h, w of |Δ_rows m| + |Δ_columns m| with m = Σ_c |heatmap|. Pulls the magnitude, as
    it is usually shown, towards piecewise constant, whatever the signs.

    References:
        google-research/optimizing_interpretability, "absolute total variation".
    """

    weight: float = tunable(0.5, 0.1, 1000.0)

    def formula(self, heatmap: Images, images: Images) -> Float[Tensor, " b"]:
        return total_variation(heatmap.abs().sum(dim=1, keepdim=True))
