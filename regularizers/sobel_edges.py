"""Distance of the Sobel edge maps of heatmap and image."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from regularizers.base import Regularizer, tunable
from regularizers.functional import Images, minmax_scale, sobel


@dataclass(frozen=True, kw_only=True)
class SobelEdges(Regularizer):
    """Summed squared difference of the Sobel edges of heatmap and image, each scaled to [0, 1].

    distance = Σ over c, h, w and both kernels of (Sobel scaled(heatmap) - Sobel scaled(image))²; kernels ±1, ±2,
    ±1 unscaled, borders mirrored. A sum, so it grows with the image size. Pulls the
    heatmap's edges towards the image's.

    References:
        google-research/optimizing_interpretability, "Sobel edge loss".
    """

    weight: float = tunable(0.5, 0.1, 1000.0)

    def formula(self, heatmap: Images, images: Images) -> Float[Tensor, " b"]:
        # Sobel is linear: the difference of the edges is the edges of the difference.
        down, along = sobel(minmax_scale(heatmap) - minmax_scale(images))
        return (down.square() + along.square()).sum(dim=(1, 2, 3))
