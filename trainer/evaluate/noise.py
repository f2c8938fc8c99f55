"""Noise whose strength follows the image: the two kinds of the original's `add_noise`.

Pure functions: the unit draws come from the caller. Draw them with a generator per example, and what an example gets
does not depend on the batch it is in. As there, results are not clipped.

References:
    google-research, optimizing_interpretability/imagenet/utils.py.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Generator, Tensor

Images = Float[Tensor, "b 3 h w"]
MULTIPLES = (0.05, 0.1, 0.2)  # of the range
PERCENTILES = (5.0, 10.0)


def r_normal(images: Images, unit: Images, multiple: float) -> Images:
    """Normal noise with a deviation of `multiple` times the range of the image; none on a constant image.

    Args:
        images: images of any unit; the range is maximum minus minimum over all channels and pixels of each example.
        unit: random draws of deviation 1.
        multiple: factor on the range, dimensionless; the original's default is 0.15.
    """
    span = images.amax(dim=(1, 2, 3), keepdim=True) - images.amin(dim=(1, 2, 3), keepdim=True)
    return images + unit * (multiple * span)


def r_uniform(images: Images, unit: Images, percentile: float = 10.0) -> Images:
    """Uniform noise between -p and p, a percentile of the values of the image.

    A normalized image has a negative p as a rule, which swaps the bounds; where p is 0 there is no noise.

    Args:
        images: images of any unit; p is taken over all channels and pixels of each example, by nearest rank: a value of
            the image, not interpolated.
        unit: random draws between 0 and 1.
        percentile: percentile in [0, 100].
    """
    values = images.flatten(1)
    count = values.shape[1]
    # Counted from the top, as the original does: it decides where two ranks are equally near.
    rank = count - round((count - 1) * (1 - percentile / 100))
    bound = values.kthvalue(rank).values[:, None, None, None]
    return images + (unit * (bound + bound) - bound)


def noisy(
    pixels: Images, generators: Callable[[str], Sequence[Generator]]
) -> Iterator[tuple[str, Float[Tensor, "b 3 h w"]]]:
    """The images with each kind and level of noise, under its name in metrics: `normal_0.1`, `uniform_10`.

    Args:
        pixels: images, pixel fractions.
        generators: function that makes one generator for each example, given their purpose.
    """
    for multiple in MULTIPLES:
        unit = [torch.randn(pixels.shape[1:], generator=generator) for generator in generators("normal")]
        yield f"normal_{multiple:g}", r_normal(pixels, torch.stack(unit).to(pixels), multiple)
    for percentile in PERCENTILES:
        unit = [torch.rand(pixels.shape[1:], generator=generator) for generator in generators("uniform")]
        yield f"uniform_{percentile:g}", r_uniform(pixels, torch.stack(unit).to(pixels), percentile)
