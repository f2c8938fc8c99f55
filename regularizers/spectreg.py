"""The size of a random projection of the logits' Jacobian."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from regularizers.base import Forward, Regularizer, tunable


@dataclass(frozen=True, kw_only=True)
class SpectReg(Regularizer):
    """Mean square of the input gradient of a random projection of the logits.

    penalty_n = mean over c, h, w of (d Σ_m logits_m·p_m / d x_n)² with p standard normal, drawn anew for
    every example from `forward.generator` and not normalised; labels are not used. Its expectation is the
    squared Frobenius norm of the Jacobian per pixel. Pulls every logit towards being flat.

    References:
        Varga, Csiszárik, Zombori: Gradient Regularization Improves Accuracy of Discriminative Models, 2017,
        arXiv 1712.09936, section on spectral regularization.
    """

    weight: float = tunable(0.5, 0.1, 1000.0)

    def penalty(self, forward: Forward) -> Float[Tensor, " b"]:
        logits = forward.logits.float() if forward.logits.dtype.itemsize < 4 else forward.logits
        generator = forward.generator
        # A CPU generator gives the same draws on every device; a device's own generator needs its device.
        device = generator.device if generator is not None else logits.device
        projection = torch.randn(logits.shape, generator=generator, dtype=logits.dtype, device=device)
        score = (logits * projection.to(logits.device)).sum(dim=1)
        return forward.heatmap(score).square().mean(dim=(1, 2, 3))
