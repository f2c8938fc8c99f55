"""The size of the heatmap."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from regularizers.base import Regularizer, tunable
from regularizers.functional import Images


@dataclass(frozen=True, kw_only=True)
class L2(Regularizer):
    """Mean square of the heatmap (no root).

    distance = mean over c, h, w of heatmap². Pulls the heatmap towards zero. This is double
    backpropagation on the logit of the true class instead of on the loss.

    References:
        google-research/optimizing_interpretability, "OneHot formulation" of L2.
    """

    weight: float = tunable(0.5, 0.1, 1000.0)

    def formula(self, heatmap: Images, images: Images) -> Float[Tensor, " b"]:
        return heatmap.square().mean(dim=(1, 2, 3))
