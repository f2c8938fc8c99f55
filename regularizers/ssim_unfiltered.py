"""Structural dissimilarity of heatmap and image, plain blocks."""

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from regularizers._images import Images, normalize, require_size
from regularizers._ssim import C2, structural_similarity
from regularizers.base import Regularizer, tunable

BLOCK = 8


@dataclass(frozen=True, kw_only=True)
class BlockStructuralSimilarity(Regularizer):
    """Minus the SSIM of heatmap and image on 8x8 blocks, each scaled to [0, 1]; in [-1, 1].

    distance = -SSIM with plain means over non-overlapping 8x8 blocks; rest rows and columns are dropped, and
    c2 is multiplied by 63/64, as in the original code. Pulls the heatmap's blocks towards the image's in brightness,
    contrast and structure.

    References:
        Wang et al. 2004, as in `regularizers._ssim`; window of google-research/optimizing_interpretability.
    """

    weight: float = tunable(0.5, 0.1, 1000.0)

    def formula(self, heatmap: Images, images: Images) -> Float[Tensor, " b"]:
        require_size(heatmap, BLOCK, "ssim_unfiltered")
        return -structural_similarity(normalize(heatmap), normalize(images), _block_average, c2=C2 * 63 / 64)


def _block_average(images: Images) -> Float[Tensor, "b c h//8 w//8"]:
    return F.avg_pool2d(images, BLOCK)
