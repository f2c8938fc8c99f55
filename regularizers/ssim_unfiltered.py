"""Structural dissimilarity of heatmap and image, plain blocks."""

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from regularizers.base import Regularizer, tunable
from regularizers.functional import C2, Images, minmax_scale, require_size, structural_similarity

BLOCK = 8


@dataclass(frozen=True, kw_only=True)
class SsimUnfiltered(Regularizer):
    """Minus the SSIM of heatmap and image on 8x8 blocks, each scaled to [0, 1]; in [-1, 1].

    distance = -SSIM with plain means over non-overlapping 8x8 blocks; rest rows and columns are dropped, and
    c2 is multiplied by 63/64, as in the original code. Pulls the heatmap's blocks towards the image's in brightness,
    contrast and structure.

    References:
        Wang, Bovik, Sheikh, Simoncelli: Image quality assessment: from error visibility to structural similarity. IEEE
        Transactions on Image Processing 13(4), 2004. Window of google-research/optimizing_interpretability.
    """

    weight: float = tunable(0.5, 0.1, 1000.0)

    def formula(self, heatmap: Images, images: Images) -> Float[Tensor, " b"]:
        require_size(heatmap, BLOCK, "ssim_unfiltered")
        return -structural_similarity(minmax_scale(heatmap), minmax_scale(images), _block_average, c2=C2 * 63 / 64)


def _block_average(images: Images) -> Float[Tensor, "b c h//8 w//8"]:
    return F.avg_pool2d(images, BLOCK)
