"""Squared correlation of heatmap and image."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from regularizers.base import Regularizer, tunable
from regularizers.functional import Images


@dataclass(frozen=True, kw_only=True)
class Cor(Regularizer):
    """One minus the squared Pearson correlation of heatmap and image.

    distance = 1 - mean over c of r², r over rows and columns with population moments. Squared as in the
    original code, so a negative image scores as well as the image. A constant channel on either side counts
    as uncorrelated (r² = 0). Pulls the heatmap towards the image or its negative, at any contrast.

    References:
        google-research/optimizing_interpretability, "maximizing the correlation coefficient".
    """

    weight: float = tunable(0.5, 0.1, 1000.0)

    def formula(self, heatmap: Images, images: Images) -> Float[Tensor, " b"]:
        x, y = _centered(heatmap), _centered(images)
        covariance = (x * y).mean(dim=(2, 3))
        variances = x.square().mean(dim=(2, 3)) * y.square().mean(dim=(2, 3))
        flat = variances == 0
        squared = torch.where(flat, 0.0, covariance.square() / torch.where(flat, 1.0, variances))
        return 1 - squared.mean(dim=1)


def _centered(images: Images) -> Images:
    """Each channel minus its mean, at largest magnitude 1, so that no variance under- or overflows.

    The correlation does not depend on the scale, which is therefore a constant in the gradient.
    """
    centered = images - images.mean(dim=(2, 3), keepdim=True)
    scale = centered.detach().abs().amax(dim=(2, 3), keepdim=True)
    # A constant channel leaves rounding noise of its mean, which is no signal to correlate with.
    magnitude = images.detach().abs().amax(dim=(2, 3), keepdim=True)
    flat = scale <= 4 * torch.finfo(images.dtype).eps * magnitude
    return torch.where(flat, 0.0, centered / torch.where(flat, 1.0, scale))
