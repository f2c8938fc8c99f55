"""Gray levels, pixel fractions and what a model is fed: fractions minus a mean, over a deviation, channel by channel.

Attacks and pictures work on pixel fractions, so a radius means the same whatever a model's deviation.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from trainer.model_input import IMAGENET_MEAN, IMAGENET_STD, Channels

Images = Float[Tensor, "b 3 h w"]


@dataclass(frozen=True)
class Normalization:
    """By mean and deviation of each channel.

    Args:
        mean: pixel fractions, in [0, 1].
        std: pixel fractions, in (0, 1].
    """

    mean: Channels
    std: Channels

    def normalize(self, levels: UInt8[Tensor, "b 3 h w"]) -> Images:
        """Normalized images of gray levels in [0, 255]."""
        mean, std = (torch.tensor(values, device=levels.device)[:, None, None] for values in (self.mean, self.std))
        # In place: a pass over memory saved is a third of the time.
        return levels.float().mul_(1 / (255 * std)).sub_(mean / std)

    def to_pixels(self, images: Images) -> Images:
        """Pixel fractions in [0, 1] of normalized images."""
        return (images * _channels(self.std, images) + _channels(self.mean, images)).clamp(0, 1)

    def from_pixels(self, pixels: Images) -> Images:
        """Normalized images of pixel fractions."""
        return (pixels - _channels(self.mean, pixels)) / _channels(self.std, pixels)


def _channels(values: Channels, like: Tensor) -> Tensor:
    return like.new_tensor(values)[:, None, None]


IMAGENET = Normalization(mean=IMAGENET_MEAN, std=IMAGENET_STD)
