"""Heatmaps and their numbers: likeness to the image, smoothness, sparsity and size. Metrics, not losses.

All are computed in float64: heatmaps may be so small or large that float32 cannot hold their squares.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from regularizers import REGULARIZERS, Forward
from regularizers.base import at_least_float32
from regularizers.functional import Images, luma, minmax_scale, total_variation
from regularizers.psnr_hvs_dct import visible_error
from trainer.evaluate.classify import Classify
from trainer.metrics import HEATMAP_CORRELATION, HEATMAP_SSIM

MAX_DECIBEL = 100.0  # an identical pair has an infinite PSNR, of which there is no mean


def heatmap(
    classify: Classify, images: Float[Tensor, "b 3 h w"], labels: Int[Tensor, " b"]
) -> Float[Tensor, "b 3 h w"]:
    """Input gradient of the true class's logit, signed, without a graph behind it.

    References:
        Simonyan, Vedaldi, Zisserman: Deep Inside Convolutional Networks: Visualising Image Classification Models
        and Saliency Maps. ICLR Workshop 2014 (there its absolute value).
    """
    images = images.detach().requires_grad_()
    score = Forward(images, labels, classify(images)).class_logits.sum()
    (gradient,) = torch.autograd.grad(score, images)
    return at_least_float32(gradient)


def similarity(heatmaps: Float[Tensor, "b 3 h w"], images: Float[Tensor, "b 3 h w"]) -> dict[str, Float[Tensor, " b"]]:
    """Likeness of heatmap and image, each example scaled to [0, 1] by its minimum and maximum over all channels.

    Returns:
        Per example, higher is more alike:
        `heatmap_ssim` in [-1, 1]: SSIM of the `ssim` regularizer (Gaussian windows); of images below 11 pixels that
        of `ssim_unfiltered`. `heatmap_correlation` in [-1, 1]: signed Pearson correlation over all channels and
        pixels; 0 if either is constant. `heatmap_psnr` in [0, 100] dB: 10·log10(1/MSE). `heatmap_psnr_hvs` up to
        100 dB: the PSNR-HVS of the `psnr_hvs_dct` regularizer, of the luminance; errors where the eye is most
        sensitive can take it below 0.
        NaN or infinity in one example stays in its numbers.

    Raises:
        ValueError: if a side is shorter than 8 pixels, the block of the smallest window.

    References:
        Wang et al. 2004, as in `regularizers.functional`; Egiazarian et al. 2006, as in `regularizers.psnr_hvs_dct`.
    """
    heatmaps, images = minmax_scale(heatmaps.double()), minmax_scale(images.double())
    small = min(images.shape[-2:]) < 11
    dissimilarity = REGULARIZERS["ssim_unfiltered" if small else "ssim"]()
    return {
        HEATMAP_SSIM: -dissimilarity.formula(heatmaps, images),
        HEATMAP_CORRELATION: correlation(heatmaps, images),
        "heatmap_psnr": _decibel((heatmaps - images).square().mean(dim=(1, 2, 3))),
        "heatmap_psnr_hvs": _decibel(visible_error(luma(heatmaps), luma(images)).mean(dim=1)),
    }


def structure(heatmaps: Float[Tensor, "b 3 h w"]) -> dict[str, Float[Tensor, " b"]]:
    """Smoothness, sparsity and size of heatmaps.

    Returns:
        Per example:
        `heatmap_tv` in [0, 1]: the heatmap is scaled to [0, 1] by its minimum and maximum over all channels; mean
        absolute difference over all pairs of vertical and horizontal neighbors in each channel,
        3·((h-1)·w + h·(w-1)) pairs. 0 for a constant one; independent uniform noise has 1/3.
        `heatmap_gini` in [0, 1): Gini index of the relevance of the h·w pixels (`relevance`). 0 if all are equal
        (also if all are 0), 1 - 1/(h·w) if one pixel has everything.
        `heatmap_norm`: Euclidean norm over all channels and pixels, in logits per normalized pixel.
        NaN or infinity in one example stays in its numbers.

    References:
        Rudin, Osher, Fatemi: Nonlinear total variation based noise removal algorithms. Physica D 60, 1992.
        Hurley, Rickard: Comparing Measures of Sparsity. IEEE Transactions on Information Theory 55(10), 2009.
        Chalasani, Chen, Chowdhury, Wu, Jha: Concise Explanations of Neural Networks using Adversarial Training.
        ICML 2020 (Gini index of attributions).
    """
    heatmaps = heatmaps.double()
    channels, height, width = heatmaps.shape[1:]
    pairs = channels * ((height - 1) * width + height * (width - 1))
    return {
        "heatmap_tv": total_variation(minmax_scale(heatmaps)) / max(pairs, 1),
        "heatmap_gini": _gini(relevance(heatmaps).flatten(1)),
        "heatmap_norm": heatmaps.flatten(1).norm(dim=1),
    }


def relevance(heatmaps: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b h w"]:
    """How much each pixel matters: sum over channels of the heatmap's absolute value."""
    return heatmaps.abs().sum(dim=1)


def correlation(x: Images, y: Images) -> Float[Tensor, " b"]:
    """Signed Pearson correlation of each example over all channels and pixels, in [-1, 1]; 0 if either is constant."""
    # Scaled first: a constant becomes 0 everywhere, where subtracting its mean would leave rounding noise.
    flat = torch.stack([minmax_scale(x.double()).flatten(1), minmax_scale(y.double()).flatten(1)])
    centered = flat - flat.mean(dim=2, keepdim=True)
    unit = centered / centered.norm(dim=2, keepdim=True).clamp(min=torch.finfo(flat.dtype).tiny)
    return (unit[0] * unit[1]).sum(dim=1).clamp(-1, 1)


def _decibel(mean_squared_error: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """10·log10(1/error) of signals with peak 1, at most `MAX_DECIBEL`."""
    return -10 * mean_squared_error.clamp(min=10 ** (-MAX_DECIBEL / 10)).log10()


def _gini(values: Float[Tensor, "b n"]) -> Float[Tensor, " b"]:
    """Gini index of non-negative values: Σ (2i - n - 1)·v_i / (n·Σ v) over ascending v."""
    n = values.shape[1]
    ranks = 2 * torch.arange(1, n + 1, dtype=values.dtype, device=values.device) - n - 1
    total = values.sum(dim=1)
    weighted = (ranks * values.sort(dim=1).values).sum(dim=1)
    return torch.where(total == 0, 0.0, weighted / (n * torch.where(total == 0, 1.0, total))).clamp(min=0)
