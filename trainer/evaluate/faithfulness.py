"""Does the heatmap show what the classifier uses: pixel deletion and insertion, agreement with steadier gradients."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from regularizers.functional import WINDOW, gaussian_average
from trainer.evaluate.classify import Classify
from trainer.evaluate.heatmaps import correlation, heatmap, relevance

BLUR = 5.0  # deviation in pixels, in an 11x11 window, as in RISE's published code
NOISE = 0.15  # of an image's range, from SmoothGrad's recommended 10 to 20 %


@torch.no_grad()
def insertion_deletion(
    classify: Classify,
    images: Float[Tensor, "b 3 h w"],
    labels: Int[Tensor, " b"],
    heatmaps: Float[Tensor, "b 3 h w"],
    steps: int = 16,
) -> dict[str, Float[Tensor, " b"]]:
    """Area under the true class's probability while the most relevant pixels are taken away or shown first.

    Pixels are ranked by the sum over channels of the heatmap's absolute value, equal ones row by row. Deletion
    sets the first ones to 0, the mean color of the normalization; insertion shows them in a blurred image (11x11
    Gaussian of deviation 5 pixels, mean color outside). Costs 2·steps + 1 forward passes.

    Args:
        images: normalized pixels.
        steps: the curve has its points at the fractions 0, 1/steps, …, 1 of the pixels, rounded to whole pixels.

    Returns:
        Per example, by the trapezoidal rule over fractions, in [0, 1]: `deletion_auc`, lower is more faithful, and
        `insertion_auc`, higher is more faithful.

    References:
        Petsiuk, Das, Saenko: RISE: Randomized Input Sampling for Explanation of Black-box Models. BMVC 2018.
    """
    ranks = _ranks(relevance(heatmaps))
    blurred = gaussian_average(F.pad(images, 4 * [WINDOW // 2]), BLUR)

    def probabilities(fraction: float, background: Tensor, keep_first: bool) -> Float[Tensor, " b"]:
        first = (ranks < round(fraction * ranks[0].numel()))[:, None]
        mixed = torch.where(first if keep_first else ~first, images, background)
        return classify(mixed).double().softmax(dim=1).gather(1, labels[:, None])[:, 0]

    fractions = [step / steps for step in range(steps + 1)]
    mean_color = torch.zeros_like(images)
    deletion = [probabilities(fraction, mean_color, keep_first=False) for fraction in fractions]
    insertion = [probabilities(fraction, blurred, keep_first=True) for fraction in fractions[:-1]]
    insertion.append(deletion[0])  # both ends of the curves that show the whole image
    return {
        "deletion_auc": torch.trapezoid(torch.stack(deletion), dx=1 / steps, dim=0),
        "insertion_auc": torch.trapezoid(torch.stack(insertion), dx=1 / steps, dim=0),
    }


def agreement(
    classify: Classify,
    images: Float[Tensor, "b 3 h w"],
    labels: Int[Tensor, " b"],
    heatmaps: Float[Tensor, "b 3 h w"],
    generators: Sequence[torch.Generator],
    samples: int = 16,
) -> dict[str, Float[Tensor, " b"]]:
    """Signed Pearson correlation in [-1, 1] of heatmaps with a smoothed and with an integrated gradient.

    Args:
        images: normalized pixels.
        heatmaps: the plain gradients, from `heatmap`.
        generators: one per example, as in `smooth_gradient`.
        samples: points of each mean; both together cost 2·samples gradients.

    Returns:
        Per example `smoothgrad_agreement` and `integrated_agreement`: near 1 if the gradient at the image is that of
        its neighborhood and of the way to it from the mean color; 0 if either is constant.
    """
    smooth = smooth_gradient(classify, images, labels, generators, samples)
    integrated = integrated_gradient(classify, images, labels, samples)
    return {
        "smoothgrad_agreement": correlation(heatmaps, smooth),
        "integrated_agreement": correlation(heatmaps, integrated),
    }


def smooth_gradient(
    classify: Classify,
    images: Float[Tensor, "b 3 h w"],
    labels: Int[Tensor, " b"],
    generators: Sequence[torch.Generator],
    samples: int = 16,
) -> Float[Tensor, "b 3 h w"]:
    """Mean heatmap of noisy copies of each image.

    Args:
        images: normalized pixels; the noise's deviation is 0.15·(max - min) of each over all channels.
        generators: one per example, so that its noise does not depend on the batch it is in; each is drawn from
            `samples` times, and CPU generators draw the same numbers for every device and data type.

    References:
        Smilkov, Thorat, Kim, Viégas, Wattenberg: SmoothGrad: removing noise by adding noise. 2017, arXiv:1706.03825.
    """
    deviation = NOISE * (images.amax(dim=(1, 2, 3), keepdim=True) - images.amin(dim=(1, 2, 3), keepdim=True))
    total = torch.zeros_like(images)
    for _ in range(samples):
        noise = torch.stack([_normal(*pair) for pair in zip(images, generators, strict=True)])
        total += heatmap(classify, images + deviation * noise, labels)
    return total / samples


def integrated_gradient(
    classify: Classify, images: Float[Tensor, "b 3 h w"], labels: Int[Tensor, " b"], steps: int = 16
) -> Float[Tensor, "b 3 h w"]:
    """Mean heatmap along the straight path to each image from 0, the mean color of the normalization; midpoint rule.

    Integrated gradients without the product with the image, so that it compares with other gradients.

    References:
        Sundararajan, Taly, Yan: Axiomatic Attribution for Deep Networks. ICML 2017.
    """
    total = torch.zeros_like(images)
    for step in range(steps):
        total += heatmap(classify, (step + 0.5) / steps * images, labels)
    return total / steps


def _normal(like: Float[Tensor, "3 h w"], generator: torch.Generator) -> Float[Tensor, "3 h w"]:
    return torch.randn(like.shape, generator=generator, device=generator.device).to(like)


def _ranks(values: Float[Tensor, "b h w"]) -> Int[Tensor, "b h w"]:
    """0 for each example's largest value, and so on; equal values row by row."""
    order = values.flatten(1).argsort(dim=1, descending=True, stable=True)
    return order.argsort(dim=1).reshape(values.shape)
