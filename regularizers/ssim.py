"""Structural dissimilarity of heatmap and image, Gaussian windows."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from regularizers.base import Regularizer, tunable
from regularizers.functional import WINDOW, Images, gaussian_average, minmax_scale, require_size, structural_similarity


@dataclass(frozen=True, kw_only=True)
class Ssim(Regularizer):
    """Minus the SSIM of heatmap and image, each scaled to [0, 1]; in [-1, 1].

    distance = -SSIM on 11x11 Gaussian windows of deviation 1.5 at stride 1 inside the image, per channel.
    Promised by the original's text and absent from its code. Pulls the heatmap's local brightness, contrast and
    structure towards the image's.

    References:
        Wang, Bovik, Sheikh, Simoncelli: Image quality assessment: from error visibility to structural similarity. IEEE
        Transactions on Image Processing 13(4), 2004.
    """

    weight: float = tunable(0.5, 0.1, 1000.0)

    def formula(self, heatmap: Images, images: Images) -> Float[Tensor, " b"]:
        require_size(heatmap, WINDOW, "ssim")
        return -structural_similarity(minmax_scale(heatmap), minmax_scale(images), gaussian_average)
