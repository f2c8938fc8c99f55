"""The size of a random projection of the logits' Jacobian."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from regularizers.base import Forward, Regularizer, tunable
from regularizers.functional import Images


@dataclass(frozen=True, kw_only=True)
class Spectreg(Regularizer):
    """Mean square of the input gradient of a random projection of the logits.

    distance = mean over c, h, w of heatmap², heatmap_n = d Σ_m logits_m·p_m / d x_n with p standard normal, drawn
    anew for every example from `forward.generator` and not scaled; labels are not used. Its expectation is the
    squared Frobenius norm of the Jacobian per pixel. Pulls every logit towards being flat.

    References:
        Varga, Csiszárik, Zombori: Gradient Regularization Improves Accuracy of Discriminative Models, 2017,
        arXiv 1712.09936, section on spectral regularization.
    """

    weight: float = tunable(0.5, 0.1, 1000.0)

    def score(self, forward: Forward) -> Float[Tensor, " b"]:
        return forward.random_logits

    def formula(self, heatmap: Images, images: Images) -> Float[Tensor, " b"]:
        return heatmap.square().mean(dim=(1, 2, 3))
