"""What a model computes differently while a penalty on its input gradient trains it.

    with DoubleBackprop(batch_norm="stop") as functions:
        logits = model(images)
    forward = Forward(images, labels, logits, while_heatmap=functions.taking_heatmap)

Works on any module: it replaces functions while the model is applied, not layers.

- **Convolutions** get a cheaper second derivative (`trainer.convolution`).
- **Batch norm** with fixed statistics becomes one multiply-add; in large layers one that leaves nothing in the graph
  but scaled weights of the convolution before it. With `stop` the batch's mean and variance are constants
  of the heatmap but not of the training step: their gradient is cut while the heatmap is taken and only then, so one
  forward pass is enough.
- **Hard sigmoid** has a second derivative.

Where the conditions of a replacement do not hold, PyTorch's own function serves: values and gradients are those of the
model without this block, whatever it does (`tests/trainer/test_double_backprop_any_model.py`).
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from regularizers.base import at_least_float32
from trainer.config import UsageError
from trainer.convolution import Convolution, FoldedConvolution, Geometry, transformed

# Functions that only look at a tensor: batch norm layers call them before they call `batch_norm`.
_QUERIES = {torch._assert, Tensor.dim, Tensor.size, Tensor.numel, Tensor.is_contiguous} | {
    getattr(Tensor, name).__get__ for name in ("ndim", "shape", "dtype", "device", "requires_grad", "is_cuda")
}


@dataclass(frozen=True)
class _Applied:
    """A convolution that batch norm may follow."""

    output: Tensor
    input: Tensor
    weight: Tensor
    bias: Tensor | None
    geometry: Geometry
    versions: tuple[int, ...]

    def gave(self, tensor: Tensor) -> bool:
        """Whether this is its output, and it, the input and the weights are as they were."""
        made = isinstance(tensor.grad_fn, Convolution._backward_cls)
        return made and tensor is self.output and self.versions == _versions(tensor, self.input, self.weight, self.bias)


class DoubleBackprop(TorchFunctionMode):
    """Replaces functions of PyTorch inside the block; one instance serves one forward pass.

    Args:
        batch_norm: `stop` cuts the gradient of batch statistics while the heatmap is taken; under `flow` batch
            statistics are differentiated like everything else. Modules in evaluation mode (`frozen`) know neither.
        fast: False leaves everything to PyTorch's functions, but for what `stop` means.
    """

    def __init__(self, batch_norm: str, fast: bool = True) -> None:
        super().__init__()
        self._stop, self._fast = batch_norm == "stop", fast
        self._last: _Applied | None = None  # the convolution that batch norm may follow
        self.in_heatmap = False

    @contextmanager
    def taking_heatmap(self) -> Iterator[None]:
        """Entered while the input gradient is taken."""
        self.in_heatmap = True
        try:
            yield
        finally:
            self.in_heatmap = False

    def __exit__(self, *error: Any) -> None:
        self._last = None  # it reaches this object again through the graph: a cycle that would hold the activations
        super().__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called in place of every function of torch."""
        kwargs = kwargs or {}
        if func in _QUERIES:
            return func(*args, **kwargs)
        # Whatever comes between a convolution and its batch norm may change the output or hang a hook on it.
        last, self._last = self._last, None
        result = None
        if func is F.conv2d and self._fast:
            result = self._conv2d(*args, **kwargs)
        elif func is F.hardsigmoid and self._fast:
            result = _hardsigmoid(*args, **kwargs)
        elif func is F.batch_norm:
            result = self._batch_norm(last, *args, **kwargs)
        elif func is torch.batch_norm:
            result = self._torch_batch_norm(last, *args, **kwargs)
        return func(*args, **kwargs) if result is None else result

    def _conv2d(
        self, input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
        dilation: Any = 1, groups: int = 1,
    ) -> Tensor | None:  # fmt: skip
        """None where PyTorch's own shall serve, here and below."""
        geometry = _geometry(stride, padding, dilation, groups)
        if geometry is None or input.ndim != 4 or not _ordinary(input, weight, bias):
            return None
        input = _cast(input)
        output = Convolution.apply(input, _cast(weight), _cast(bias), geometry)
        self._last = _Applied(output, input, weight, bias, geometry, _versions(output, input, weight, bias))
        return output

    def _torch_batch_norm(
        self, last: _Applied | None, input: Tensor, weight: Tensor | None, bias: Tensor | None,
        running_mean: Tensor | None, running_var: Tensor | None, training: bool, momentum: float, eps: float,
        cudnn_enabled: bool,
    ) -> Tensor | None:  # fmt: skip
        return self._batch_norm(last, input, running_mean, running_var, weight, bias, training, momentum, eps)

    def _batch_norm(
        self, last: _Applied | None, input: Tensor, running_mean: Tensor | None, running_var: Tensor | None,
        weight: Tensor | None = None, bias: Tensor | None = None, training: bool = False, momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor | None:  # fmt: skip
        # No value has no statistics to hold; one value has no variance, and PyTorch raises an error.
        held = training and self._stop and input.numel() > input.shape[1]
        if not held and (training or not self._fast or not _ordinary(input, weight, bias)):
            return None
        values = at_least_float32(input)
        if training:
            mean, variance = self._held_statistics(values, running_mean, running_var, momentum)
        else:
            assert running_mean is not None
            assert running_var is not None
            mean, variance = running_mean, running_var
        scale = torch.rsqrt(variance + eps) if weight is None else weight * torch.rsqrt(variance + eps)
        shift = -mean * scale if bias is None else bias - mean * scale
        shape = [1, -1] + [1] * (input.ndim - 2)
        if training or last is None or not last.gave(input) or last.weight.numel() > input.numel():
            return torch.addcmul(shift.reshape(shape), values, scale.reshape(shape)).to(input.dtype)
        # A layer with fewer weights than activations passes its derivatives through weights that hold the scale.
        with torch.no_grad():
            output = torch.addcmul(shift.reshape(shape), values, scale.reshape(shape)).to(input.dtype)
        folded = last.weight * scale.reshape(-1, 1, 1, 1)
        folded_bias = shift if last.bias is None else shift + last.bias * scale
        dtype = last.input.dtype
        return FoldedConvolution.apply(
            last.input, folded.to(dtype), folded_bias.to(dtype), input, scale, shift, last.weight, last.bias,
            last.geometry, [output],
        )  # fmt: skip

    def _held_statistics(
        self, values: Tensor, running_mean: Tensor | None, running_var: Tensor | None, momentum: float
    ) -> tuple[Tensor, Tensor]:
        """Mean and population variance of each channel, cut from the heatmap; updates the running ones."""
        dims = [0, *range(2, values.ndim)]
        mean, variance = values.mean(dims), values.var(dims, correction=0)
        if running_mean is not None and running_var is not None:
            count = values.numel() // values.shape[1]
            with torch.no_grad():
                running_mean.lerp_(mean.to(running_mean), momentum)
                running_var.lerp_(variance.to(running_var) * (count / (count - 1)), momentum)
        return _Held.apply(mean, self), _Held.apply(variance, self)


@contextmanager
def name_missing_derivative(model: str) -> Iterator[None]:
    """Turn PyTorch's complaint about an operation without a second derivative into advice.

    Raises:
        UsageError: naming the operation and what helps.
    """
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        found = re.search(
            r"derivative for '?(?:aten::)?(\w+)'? is not implemented|(once_differentiable)|"
            r"(torch\.compile) with aot_autograd does not currently support double backward",
            str(error),
        )
        if found is None:
            raise
        operation = (found[1] or found[3] or "a function marked once_differentiable").removesuffix("_backward")
        advice = "use another model or replace that layer"
        if found[3]:
            advice = "give the modules as they were before torch.compile; `compile` translates the whole step"
        if "attention" in operation:
            advice = "switch its fused attention off (timm: TIMM_FUSED_ATTN=0; others: SDPBackend.MATH)"
        elif "rnn" in operation:
            advice = "set torch.backends.cudnn.enabled = False"
        raise UsageError(
            f"model {model!r} uses {operation}, which cannot be differentiated twice, as every regularizer but 'none' "
            f"needs; {advice}"
        ) from error


class _Held(torch.autograd.Function):
    """The identity; its gradient is cut while the heatmap is taken."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, functions: DoubleBackprop) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, DoubleBackprop], output: Tensor) -> None:
        ctx.functions = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None]:  # type: ignore[override]
        return (None if ctx.functions.in_heatmap else gradient), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, functions: None) -> Tensor:
        return tangent.view_as(tangent)


def _nodes(result: Tensor) -> Iterator[Any]:
    """All nodes of a result's graph."""
    found, nodes = set(), [result.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is not None and node not in found:
            found.add(node)
            nodes += [following for following, _ in node.next_functions]
            yield node


def refuse_once_differentiable(penalties: Tensor) -> None:
    """Raise what PyTorch would, which is silent in a backward pass that is given its inputs.

    Raises:
        RuntimeError: if a function that is marked once_differentiable would have to be differentiated again.
    """
    if any(node.name() == "torch::autograd::Error" for node in _nodes(penalties)):
        raise RuntimeError("trying to differentiate twice a function that was marked with @once_differentiable")


def refuse_unseen_batch_norm(result: Tensor, batch_norm: str) -> None:
    """Walk a result's graph for batch norms whose mode is not what was asked for.

    Raises:
        UsageError: under `stop`, if one normalizes by its batch as no call that was replaced; under `frozen`, if one
            with running statistics normalizes by its batch.
    """
    for node in _nodes(result):
        if "BatchNorm" not in node.name() or not getattr(node, "_saved_training", False):
            continue
        if len(node._saved_input) <= 1:  # of an empty batch, or instance norm, which holds its examples as channels
            continue
        if batch_norm == "stop" or node._saved_running_mean is not None:
            advice = "give frozen or flow" if batch_norm == "stop" else "trace it in evaluation mode, or give flow"
            raise UsageError(
                f"the model has a batch norm in code of torch.jit, or by another function than F.batch_norm, that "
                f"`batch_norm` {batch_norm} does not reach; {advice}"
            )


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """The same function and derivative; PyTorch's, in many small networks for phones, has no second one."""
    result = F.relu6(input + 3) / 6
    return input.copy_(result) if inplace else result


def _ordinary(*tensors: Tensor | None) -> bool:
    """Whether a function of ours may take these tensors: real ones of PyTorch's own class, in a graph that it records.

    Transforms of torch.func and checkpointing, which applies the model once more outside the block, want PyTorch's.
    """
    return (
        torch.is_grad_enabled()
        and not transformed()
        and torch._C._autograd._top_saved_tensors_default_hooks(True) is None
        and all(t is None or (type(t) in (Tensor, nn.Parameter) and t.is_floating_point()) for t in tensors)
    )


def _versions(*tensors: Tensor | None) -> tuple[int, ...]:
    """How often each was changed in place, also by extensions, whose calls are not seen."""
    return tuple(-1 if tensor is None else tensor._version for tensor in tensors)


def _cast(value: Any) -> Any:
    """As autocast would before a convolution."""
    if value is None or value.dtype == torch.float64 or not torch.is_autocast_enabled(value.device.type):
        return value
    return value.to(torch.get_autocast_dtype(value.device.type))


def _geometry(stride: Any, padding: Any, dilation: Any, groups: Any) -> Geometry | None:
    """None for what is not written in plain whole numbers."""
    pairs = []
    for value in (stride, padding, dilation):
        numbers = [value] if isinstance(value, int) else value
        if not isinstance(numbers, (list, tuple)) or len(numbers) not in (1, 2):
            return None
        pairs.append(list(numbers) * (3 - len(numbers)))
    if any(type(number) is not int for number in [*sum(pairs, []), groups]):
        return None
    return *pairs, groups
