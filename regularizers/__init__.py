"""Input-gradient regularizers: one file each, the file name is the name everywhere.

    from regularizers import REGULARIZERS, Forward

    images.requires_grad_()
    forward = Forward(images, labels, model(images))
    regularizer = REGULARIZERS["ssim"](weight=0.1)
    loss = forward.losses.mean() + regularizer.weight * regularizer.penalty(forward).mean()
    loss.backward()

`REGULARIZERS` maps each name to a frozen dataclass whose tunable fields are its search space. A new file in this folder
that defines one subclass of `Regularizer`, the CamelCase of its name, is found; nothing else needs an edit.

In reading order: `base` (Forward, Regularizer, tunable), `functional` (what penalties share), then the regularizers,
`l2` and `mse` first. `_registry` finds them, `_contract` refuses wrong values while they train. `__main__` lists and
checks them: `_check`, on the inputs of `_samples` and against `_finite_differences`; `_cost` and `_picture`.
"""

from regularizers.base import Forward, Regularizer  # isort: skip  # first, as files of the folder may import it from here
from regularizers._contract import RegularizerError
from regularizers._registry import REGULARIZERS

__all__ = ["REGULARIZERS", "Forward", "Regularizer", "RegularizerError"]
