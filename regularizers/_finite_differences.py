"""Autograd against finite differences, for functions with kinks."""

import statistics
from collections.abc import Callable

import torch
from torch import Tensor

DIRECTIONS = 7  # their median does not see the kinks that a few of them cross
STEPS = (1e-4, 1e-5, 1e-6)  # a large one crosses kinks, a small one is lost in rounding: the best counts


def error_of_gradient(function: Callable[[Tensor], Tensor], point: Tensor) -> float | None:
    """Median over random directions of the relative error of autograd against central differences; None if both are 0.

    Args:
        function: scalar function, in float64.
    """
    point = point.clone().requires_grad_()
    value, gradient = function(point), torch.zeros_like(point)
    if value.requires_grad:
        (gradient,) = torch.autograd.grad(value, point, allow_unused=True, materialize_grads=True)
    generator, errors = torch.Generator().manual_seed(2), []
    for _ in range(DIRECTIONS):
        direction = torch.randn(point.shape, generator=generator, dtype=point.dtype)
        exact, best = float((gradient * direction).sum()), float("inf")
        for step in STEPS:
            ahead, behind = (function(point.detach() + sign * step * direction).item() for sign in (1, -1))
            found = (ahead - behind) / (2 * step)
            scale = max(abs(exact), abs(found))
            best = min(best, abs(exact - found) / scale if scale > 0 else 0.0)
            if scale == 0 and not gradient.any():
                return None
        errors.append(best)
    return statistics.median(errors)
