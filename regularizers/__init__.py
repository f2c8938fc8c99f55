"""Input-gradient regularizers: one file each, the file name is the name everywhere.

    from regularizers import REGULARIZERS, Forward

    images.requires_grad_()
    forward = Forward(images, labels, model(images))
    regularizer = REGULARIZERS["ssim"](weight=0.1)
    loss = forward.losses.mean() + regularizer.weight * regularizer.penalty(forward).mean()
    loss.backward()

`REGULARIZERS` maps each name to a frozen dataclass with the field `weight`. A new file in this folder
that defines one subclass of `Regularizer` is found by its file name; nothing else needs an edit.
"""

from regularizers._contract import RegularizerError
from regularizers._files import discover
from regularizers.base import Forward, Regularizer

__all__ = ["REGULARIZERS", "Forward", "Regularizer", "RegularizerError"]

REGULARIZERS: dict[str, type[Regularizer]] = discover()
