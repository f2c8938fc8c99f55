"""A convolution whose second derivative costs no more than its first.

The second derivative of a convolution needs two convolutions: one of the forward kind and one weight gradient. PyTorch
takes the latter as a convolution whose kernel is as large as the image, on a CPU about twice as slow as the kernel made
for it, which is used here.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Geometry = tuple[list[int], list[int], list[int], int]  # stride, padding, dilation (each vertical, horizontal), groups
_convolution_backward = torch.ops.aten.convolution_backward.default


class Convolution(torch.autograd.Function):
    """conv2d whose input gradient has a cheap derivative of its own.

    `known` holds the result where it has been computed already. It comes in a list, as autograd would take a tensor
    that is both argument and result for a view, which nobody may change in place.
    """

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry,
        known: list[Tensor] | None = None,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(input, weight)
        ctx.geometry, ctx.has_bias = geometry, bias is not None
        return F.conv2d(input, weight, bias, *geometry) if known is None else known[0]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        input, weight = ctx.saved_tensors
        images, *others = _asked(ctx, 3 if ctx.has_bias else 2)
        others = [*others, False][:2]
        if not torch.is_grad_enabled():
            return *_gradients(gradient, input, weight, ctx.geometry, [images, *others]), None, None
        # To be differentiated again: PyTorch's own derivative where the weights' gradient is part of the input
        # gradient, because they depend on the image.
        first = _InputGradient.apply(gradient, input, weight, ctx.geometry) if images else None
        rest = _gradients(gradient, input, weight, ctx.geometry, [False, *others])[1:] if any(others) else (None, None)
        return first, *rest, None, None


class _InputGradient(torch.autograd.Function):
    """d(Σ gradient · conv2d(input, weight)) / d input, linear in gradient and weight."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, input: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(gradient, weight)
        ctx.geometry = geometry
        return _input_gradient(gradient, input, weight, geometry)

    @staticmethod
    def backward(ctx: Any, direction: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        gradient, weight = ctx.saved_tensors
        second = F.conv2d(direction, weight, None, *ctx.geometry) if ctx.needs_input_grad[0] else None
        wanted = [False, ctx.needs_input_grad[2], False]
        return second, None, _gradients(gradient, direction, weight, ctx.geometry, wanted)[1], None


def _input_gradient(gradient: Tensor, input: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Gradient of conv2d with respect to its input.

    The first layer's, which plain training never takes, often has few channels and a stride. There the gradient of the
    same convolution with the stride's phases as channels and stride 1 takes 0.4 of the time on a CPU.
    """
    (vertical, horizontal), (top, left), dilation, groups = geometry
    height, width = input.shape[2:]
    if not (vertical == horizontal > 1 and input.shape[1] <= 4 and groups == 1 and dilation == [1, 1]):
        result = _gradients(gradient, input, weight, geometry, [True, False, False])[0]
        assert result is not None
        return result
    stride = vertical
    kernel = F.pad(weight, (0, -weight.shape[3] % stride, 0, -weight.shape[2] % stride))
    kernel = F.pixel_unshuffle(kernel, stride)
    padded = F.pixel_shuffle(F.conv_transpose2d(gradient, kernel), stride)
    padded = F.pad(padded, (0, max(left + width - padded.shape[3], 0), 0, max(top + height - padded.shape[2], 0)))
    return padded[..., top : top + height, left : left + width].contiguous()


def _gradients(
    gradient: Tensor, input: Tensor, weight: Tensor, geometry: Geometry, wanted: list[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of conv2d with respect to input, weight and bias, those wanted."""
    stride, padding, dilation, groups = geometry
    bias_size = [weight.shape[0]] if wanted[2] else None
    return _convolution_backward(
        gradient, input, weight, bias_size, stride, padding, dilation, False, [0, 0], groups, wanted
    )


def _asked(node: Any, count: int) -> list[bool]:
    """Which of a node's first inputs the backward pass that runs now takes a gradient for.

    `ctx.needs_input_grad` says what could be asked for when the node was made: the weights' gradient always, even
    while the input gradient alone is taken.
    """
    asked = []
    for function, _ in node.next_functions[:count]:
        try:
            asked.append(function is not None and torch._C._will_engine_execute_node(function))
        except RuntimeError:  # a leaf that autograd.grad was given
            asked.append(True)
    return asked
