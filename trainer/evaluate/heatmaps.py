"""How much the heatmap looks like the image: metrics, not losses."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from regularizers import REGULARIZERS, Forward
from regularizers._images import normalize


def heatmap(model: nn.Module, images: Float[Tensor, "b 3 h w"], labels: Int[Tensor, " b"]) -> Float[Tensor, "b 3 h w"]:
    """Input gradient of the true class's logit, without a graph behind it."""
    images = images.detach().requires_grad_()
    score = Forward(images, labels, model(images)).class_logits.sum()
    return torch.autograd.grad(score, images)[0].float()


def similarity(heatmaps: Float[Tensor, "b 3 h w"], images: Float[Tensor, "b 3 h w"]) -> dict[str, Float[Tensor, " b"]]:
    """Per example: SSIM in [-1, 1] and signed Pearson correlation in [-1, 1] of heatmap and image.

    SSIM is that of the `ssim` regularizer (Gaussian windows; of images below 11 pixels: `ssim_unfiltered`), the
    correlation is over all channels and pixels.
    """
    small = min(images.shape[-2:]) < 11
    regularizer = REGULARIZERS["ssim_unfiltered" if small else "ssim"]()
    flat = torch.stack([normalize(heatmaps).flatten(1), normalize(images).flatten(1)])
    centred = flat - flat.mean(dim=2, keepdim=True)
    norms = centred.norm(dim=2).clamp(min=torch.finfo(flat.dtype).tiny)
    return {
        "heatmap_ssim": -regularizer.distance(heatmaps, images),
        "heatmap_correlation": (centred[0] * centred[1]).sum(dim=1) / (norms[0] * norms[1]),
    }
