"""Small heatmaps, images and networks to try a regularizer on; the same every time."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from regularizers._contract import RegularizerError
from regularizers.base import Forward, Regularizer, checked
from regularizers.functional import Images

EXAMPLES, CLASSES = 4, 5
USUAL_SIDE, LARGEST_SIDE = 16, 64  # pixels


def smallest_side(regularizer: Regularizer) -> int:
    """Side in pixels of the smallest square images that `distance` works on.

    Raises:
        RegularizerError: if there is none up to `LARGEST_SIDE`; the error is that of the largest.
    """
    for side in range(1, LARGEST_SIDE):
        try:
            regularizer.distance(*pair(regularizer, side))
            return side
        except RegularizerError:
            pass
    regularizer.distance(*pair(regularizer, LARGEST_SIDE))
    return LARGEST_SIDE


def has_formula(regularizer: Regularizer) -> bool:
    """Whether the penalty is a distance of heatmap and images."""
    kind = type(regularizer)
    return kind.formula is not Regularizer.formula or kind.distance is not Regularizer.distance


def usual_side(regularizer: Regularizer) -> int:
    """Side in pixels of the images used in checks: small, but not too small."""
    return max(USUAL_SIDE, smallest_side(regularizer)) if has_formula(regularizer) else USUAL_SIDE


def pair(regularizer: Regularizer, side: int | None = None) -> tuple[Images, Images]:
    """Random heatmaps and images in float64."""
    side = side or usual_side(regularizer)
    generator = torch.Generator().manual_seed(1)
    heatmaps, images = torch.randn(2, EXAMPLES, 3, side, side, generator=generator, dtype=torch.float64)
    return heatmaps, images


def batch(regularizer: Regularizer) -> tuple[Images, Tensor]:
    """Random images in float64 and labels."""
    return pair(regularizer)[1], torch.arange(EXAMPLES) % CLASSES


def network(regularizer: Regularizer, activation: type[nn.Module]) -> nn.Sequential:
    """A small network in float64 that is the same every time."""
    side = usual_side(regularizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), activation(), nn.Conv2d(4, 6, 3, stride=2), activation(),
            nn.Flatten(), nn.Linear(6 * ((side - 5) // 2 + 1) ** 2, CLASSES),
        ).double()  # fmt: skip


def penalty(
    regularizer: Regularizer, model: Callable[[Tensor], Tensor], images: Images, labels: Tensor, seed: int = 0
) -> Tensor:
    """The penalty of each example; its random draws follow from the seed."""
    images = images.clone().requires_grad_()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return checked(regularizer, Forward(images, labels, model(images), torch.Generator().manual_seed(seed)))
