"""Structural similarity from window averages, shared by the two SSIM regularizers."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from regularizers._images import Images

C1 = 0.01**2
C2 = 0.03**2


def structural_similarity(
    x: Images, y: Images, average: Callable[[Images], Tensor], c2: float = C2
) -> Float[Tensor, " b"]:
    """SSIM in [-1, 1] of two images with peak 1, mean over windows and channels.

    Args:
        x: first image `(b, c, h, w)` in [0, 1].
        y: second image, likewise.
        average: takes the weighted mean over each window.
        c2: stabiliser of the contrast term.

    References:
        Wang, Bovik, Sheikh, Simoncelli: Image Quality Assessment: From Error Visibility to Structural
        Similarity. IEEE Transactions on Image Processing 13(4), 2004, equation 13.
    """
    # The second moments do not see a common shift; around mid grey E[x²] - E[x]² cancels far less in float32.
    x, y = x - 0.5, y - 0.5
    # Apart, since only one side carries a gradient; each in one call.
    mean_x, square_x, product = average(torch.cat([x, x.square(), x * y], dim=1)).chunk(3, dim=1)
    mean_y, square_y = average(torch.cat([y, y.square()], dim=1)).chunk(2, dim=1)
    covariance = 2 * (product - mean_x * mean_y)
    variances = square_x - mean_x.square() + square_y - mean_y.square()
    mean_x, mean_y = mean_x + 0.5, mean_y + 0.5
    luminance = (2 * mean_x * mean_y + C1) / (mean_x.square() + mean_y.square() + C1)
    return (luminance * (covariance + c2) / (variances + c2)).mean(dim=(1, 2, 3))
