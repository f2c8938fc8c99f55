"""Double backpropagation: the size of the loss's input gradient."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from regularizers.base import Forward, Regularizer, tunable
from regularizers.functional import Images


@dataclass(frozen=True, kw_only=True)
class Datagrad(Regularizer):
    """Mean square of the input gradient of the cross-entropy.

    distance = mean over c, h, w of heatmap², heatmap_n = d Σ_m CE_m / d x_n. The cross-entropy is summed over the batch
    before it is differentiated and has no label smoothing. Pulls the loss towards being flat around each image.

    References:
        Drucker, LeCun: Improving generalization performance using double backpropagation. IEEE
        Transactions on Neural Networks 3(6), 1992.
    """

    weight: float = tunable(0.5, 0.1, 1000.0)

    def score(self, forward: Forward) -> Float[Tensor, " b"]:
        return forward.losses

    def formula(self, heatmap: Images, images: Images) -> Float[Tensor, " b"]:
        return heatmap.square().mean(dim=(1, 2, 3))
