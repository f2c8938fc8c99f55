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
`l2` and `mse` first. `_names` and `_registry` find them, `_contract` refuses wrong values while they train. `__main__`
lists and checks them by `_commands`: `_check`, on the inputs of `_samples` and against `_finite_differences`; `_cost`
and `_picture`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regularizers._contract import RegularizerError
    from regularizers._registry import REGULARIZERS
    from regularizers.base import Forward, Regularizer

__all__ = ["REGULARIZERS", "Forward", "Regularizer", "RegularizerError"]


def __getattr__(name: str) -> Any:  # once it is asked for, so that a command can say what it is without PyTorch
    homes = {"REGULARIZERS": "_registry", "RegularizerError": "_contract", "Forward": "base", "Regularizer": "base"}
    if name not in homes:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{homes[name]}"), name)
