"""A convolution whose second derivative costs no more than its first.

The second derivative of a convolution needs two convolutions: one of the forward kind and one weight gradient. PyTorch
takes the latter as a convolution whose kernel is as large as the image, on a CPU about twice as slow as the kernel made
for it, which is used here.
"""

import sys
import weakref
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from trainer.config import UsageError

Geometry = tuple[list[int], list[int], list[int], int]  # stride, padding, dilation (each vertical, horizontal), groups
_convolution_backward = torch.ops.aten.convolution_backward.default


class Convolution(torch.autograd.Function):
    """conv2d whose input gradient has a cheap derivative of its own."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.set_materialize_grads(False)  # below a `FoldedConvolution` there is none
        ctx.geometry, ctx.has_bias, ctx.hooked = geometry, bias is not None, False
        return F.conv2d(input, weight, bias, *geometry)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if gradient is None:
            return None, None, None, None
        asked = [*_asked(ctx, 3 if ctx.has_bias else 2), False][:3]
        input, weight = ctx.saved_tensors
        return *_first_derivative(gradient, input, weight, ctx.geometry, asked), None


class FoldedConvolution(torch.autograd.Function):
    """The multiply-add `output * scale + shift` of a convolution's output, passed back through scaled weights.

    The output need not be kept then, nor multiplied again in every pass back. But who holds the output or its node may
    ask for its gradient, and hooks may change that: in these cases the gradient takes the way through the output.

    Args of `apply`: input, scaled weight and bias that give the same result; output, scale, shift; the convolution's
    own weight and bias; its geometry; the result, in a list, as autograd would take a tensor that is both argument and
    result for a view, which may not be changed in place.
    """

    OUTPUT = 3  # position among the arguments

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, folded: Tensor, folded_bias: Tensor, output: Tensor, scale: Tensor, shift: Tensor,
        weight: Tensor, bias: Tensor | None, geometry: Geometry, result: list[Tensor],
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(input, folded, scale, weight, bias)
        ctx.set_materialize_grads(False)
        ctx.geometry, ctx.output, ctx.version = geometry, weakref.ref(output), output._version
        return result[0]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        rest = (None,) * 4
        if gradient is None:
            return (None,) * 6 + rest
        input, folded, scale, _, _ = ctx.saved_tensors
        asked = _asked(ctx, 6)
        if not FoldedConvolution._output_matters(ctx):
            return *_first_derivative(gradient, input, folded, ctx.geometry, asked[:3]), None, None, None, *rest
        wide, channels = gradient.to(scale.dtype), (0, 2, 3)
        to_output = (wide * scale.reshape(-1, 1, 1)).to(input.dtype) if asked[3] else None
        to_scale = (wide * FoldedConvolution._output(ctx).to(wide.dtype)).sum(channels) if asked[4] else None
        to_shift = wide.sum(channels) if asked[5] else None
        return None, None, None, to_output, to_scale, to_shift, *rest

    @staticmethod
    def _output_matters(ctx: Any) -> bool:
        """Whether anybody may see or change the gradient of the convolution's output."""
        held = _references(ctx, FoldedConvolution.OUTPUT) > _UNHELD
        return ctx.output() is not None or held or ctx.next_functions[FoldedConvolution.OUTPUT][0].hooked

    @staticmethod
    def _output(ctx: Any) -> Tensor:
        """The convolution's output, computed again where it is gone."""
        output = ctx.output()
        if output is not None and output._version == ctx.version:
            return output
        if torch.is_grad_enabled():
            raise UsageError(
                "the model has a hook on a convolution's output and a gradient by the batch norm's weight that is "
                "differentiated again; give `double_backprop` pytorch"
            )
        input, _, _, weight, bias = ctx.saved_tensors
        return F.conv2d(input, weight.to(input.dtype), bias if bias is None else bias.to(input.dtype), *ctx.geometry)


def _noting_hooks(name: str) -> Any:
    """A method of a convolution's node that hangs a hook on it, or on the tensor that it made."""
    method = getattr(BackwardCFunction, name)

    def noting(node: Any, *args: Any) -> Any:
        node.hooked = True
        return method(node, *args)

    return noting


for _name in ("register_hook", "register_prehook", "_register_hook_dict"):
    setattr(Convolution._backward_cls, _name, _noting_hooks(_name))


def _references(node: Any, position: int) -> int:
    """How often Python refers to the node that made an argument of this one, these lines included."""
    return sys.getrefcount(node.next_functions[position][0])


class _Probe(torch.autograd.Function):
    """The identity."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()


def _unheld() -> int:
    """`_references` to a node that the graph alone holds."""
    with torch.enable_grad():
        result = _Probe.apply(_Probe.apply(torch.zeros(1, device="cpu", requires_grad=True)))
    return _references(result.grad_fn, 0)


_UNHELD = _unheld()


def transformed() -> bool:
    """Whether torch.func, a batched backward pass or forward-mode derivatives are at work: for PyTorch's functions."""
    return (
        torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._dispatch_tls_is_dispatch_key_included("VmapMode")  # of `is_grads_batched`
        or torch.autograd.forward_ad._current_level >= 0
    )


def _first_derivative(
    gradient: Tensor, input: Tensor, weight: Tensor, geometry: Geometry, asked: list[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of conv2d with respect to input, weight and bias, those asked for."""
    if not torch.is_grad_enabled() or transformed():
        return _gradients(gradient, input, weight, geometry, asked)
    # To be differentiated again: PyTorch's own derivative where the weights' gradient is part of the input gradient,
    # because they depend on the image.
    images, *others = asked
    first = _InputGradient.apply(gradient, input, weight, geometry) if images else None
    if not any(others):
        return first, None, None
    return first, *_gradients(gradient, input, weight, geometry, [False, *others])[1:]


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
