"""Total variation of the heatmap."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from regularizers.base import Regularizer, tunable
from regularizers.functional import Images, total_variation


@dataclass(frozen=True, kw_only=True)
class Tv(Regularizer):
    """Sum of absolute forward differences of the heatmap.

    distance = Σ over c, h, w of |Δ_rows heatmap| + |Δ_columns heatmap|, no padding. A sum, so it grows with
    the image size. Pulls the heatmap towards piecewise constant.

    References:
        Rudin, Osher, Fatemi: Nonlinear total variation based noise removal algorithms. Physica D 60, 1992
        (anisotropic form).
    """

    weight: float = tunable(0.5, 0.1, 1000.0)

    def formula(self, heatmap: Images, images: Images) -> Float[Tensor, " b"]:
        return total_variation(heatmap)
