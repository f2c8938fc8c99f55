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

import importlib
import pkgutil

from regularizers.base import Forward, Regularizer

__all__ = ["REGULARIZERS", "Forward", "Regularizer"]


def _discover() -> dict[str, type[Regularizer]]:
    """Import every public file of this folder and take the one regularizer it defines."""
    found = {}
    for info in pkgutil.iter_modules(__path__):
        if info.name.startswith("_") or info.name == "base":
            continue
        module = importlib.import_module(f"{__name__}.{info.name}")
        own = [
            value
            for value in vars(module).values()
            if isinstance(value, type) and issubclass(value, Regularizer) and value.__module__ == module.__name__
        ]
        if len(own) != 1:
            raise ImportError(
                f"regularizers/{info.name}.py defines {len(own)} Regularizer classes; a file defines exactly one "
                "(helpers belong into a file whose name starts with an underscore)"
            )
        own[0].name = info.name
        found[info.name] = own[0]
    return found


REGULARIZERS: dict[str, type[Regularizer]] = _discover()
