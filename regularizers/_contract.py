"""What a regularizer's own code may return, checked where it is called; every error names the regularizer."""

import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

# Between these, fourth powers neither vanish nor overflow in float32: a NaN or infinity is the formula's own.
MODERATE = (1e-9, 1e6)


class RegularizerError(ValueError):
    """A regularizer that breaks its contract; the message names it, what it gave, what is expected and the remedy."""


def held(
    regularizer: Any,
    method: str,
    arguments: tuple[Any, ...],
    like: Tensor,
    looked_at: tuple[Tensor, ...],
) -> Float[Tensor, " b"]:
    """What a method of the regularizer returns, if it keeps the contract.

    Args:
        regularizer: named in errors.
        like: has as many examples, on the same device, with a graph where the values need one.
        looked_at: inputs that excuse NaN or infinite values, unless they are ordinary.
    """
    if torch.compiler.is_compiling():
        return getattr(regularizer, method)(*arguments)
    subject = f"regularizer {name_of(regularizer)!r}"
    try:
        values = getattr(regularizer, method)(*arguments)
    except (RegularizerError, MemoryError, torch.OutOfMemoryError, torch.AcceleratorError):
        raise  # the last may come from anything that ran before
    except (Exception, SystemExit) as error:
        raise RegularizerError(f"{subject}: {_told(error, regularizer, method)}") from error
    problem = _problem(values, like, graph=trains(regularizer))
    if problem is None and _none_finite(regularizer, method, values, looked_at):
        found = "NaN" if values.isnan().any() else "infinity"
        problem = f"{found} for every example of finite images and heatmaps: guard divisions, roots and logarithms"
    if problem is not None:
        raise RegularizerError(f"{subject}: {method} returned {problem}")
    return values


def _problem(values: Any, like: Tensor, graph: bool) -> str | None:
    """What is wrong with the type, shape or graph of values, expected and remedy; None where nothing is."""
    expected = f"expected a tensor ({len(like)},), one value for each example"
    if not isinstance(values, Tensor):
        return f"a {type(values).__name__}, {expected}: leave out float(), .item() and .numpy()"
    if not values.is_floating_point():
        return f"{values.dtype} values, {expected}, of real floating-point numbers"
    if values.shape != like.shape[:1]:
        remedy = "reduce over dim=(1, 2, 3), all but the batch"
        if values.ndim == 0:
            remedy = "reduce over dim=(1, 2, 3), not over the batch; its mean is taken outside"
        return f"shape {tuple(values.shape)}, {expected}: {remedy}"
    if values.device != like.device:
        return f"values on {values.device}, expected them on {like.device}: make constants with heatmap.new_tensor"
    if graph and like.requires_grad and torch.is_grad_enabled() and not values.requires_grad:
        return "values without a graph, which train nothing: leave out .detach(), .item(), numpy and no_grad"
    return None


def _none_finite(regularizer: Any, method: str, values: Tensor, looked_at: tuple[Tensor, ...]) -> bool:
    """Whether no example of ordinary size is finite, and there is one; False where that would take too long."""
    if values.device.type != "cpu":
        looked = f"_looked_at_{method}"
        if looked in vars(regularizer):
            return False
        object.__setattr__(regularizer, looked, True)
    wrong = ~values.detach().isfinite()
    try:
        if not wrong.any():
            return False
    except RuntimeError:  # within vmap no value can be looked at
        return False
    low, high = MODERATE
    sizes = [inputs.detach().flatten(1).abs().amax(dim=1) for inputs in looked_at]
    moderate = torch.stack([(size >= low) & (size <= high) for size in sizes]).all(dim=0)
    return bool(moderate.any() and wrong[moderate].all())


def _told(error: BaseException, regularizer: Any, method: str) -> str:
    """An exception of the regularizer's code in one line, with the line of its file."""
    message = str(error).strip().partition("\n")[0]
    if isinstance(error, ValueError):  # says itself what is wrong, such as too small an image
        return message
    file = getattr(sys.modules.get(type(regularizer).__module__), "__file__", None)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    where = f" ({Path(file).name}, line {lines[-1]})" if file and lines else ""
    return f"{method} raised {type(error).__name__}: {message}{where}"


def name_of(regularizer: Any) -> str:
    """Its name in the registry, or the name of its class if it is not there."""
    return getattr(regularizer, "name", type(regularizer).__name__)


def trains(regularizer: Any) -> bool:
    """Whether it has a penalty at all: the baseline's largest weight is 0."""
    return regularizer.strengths()[1] != 0
