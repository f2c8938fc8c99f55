"""What a model computes differently while a penalty on its input gradient trains it.

    with DoubleBackprop(batch_norm="stop") as functions:
        logits = model(images)
    forward = Forward(images, labels, logits, while_heatmap=functions.taking_heatmap)

Works on any module: it replaces the functions `conv2d` and `batch_norm` while the model is applied, not the layers.

- **Convolutions** get a cheaper second derivative (`trainer.convolution`).
- **Batch norm** with fixed statistics becomes one multiply-add; in large layers one that leaves nothing in the graph
  but scaled weights of the convolution before it. With `stop` the batch's mean and variance are constants
  of the heatmap but not of the training step: their gradient is cut while the heatmap is taken and only then, so one
  forward pass is enough.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from trainer.config import UsageError
from trainer.convolution import Convolution, Geometry


class DoubleBackprop(TorchFunctionMode):
    """Replaces `conv2d` and `batch_norm` inside the block; one instance serves one forward pass.

    Args:
        batch_norm: `stop` cuts the gradient of batch statistics while the heatmap is taken; under `flow` batch
            statistics are differentiated like everything else. Modules in evaluation mode (`frozen`) know neither.
    """

    def __init__(self, batch_norm: str) -> None:
        super().__init__()
        self._stop = batch_norm == "stop"
        self._last: tuple[Tensor, Tensor, Tensor, Tensor | None, Geometry] | None = None
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
        if func is F.conv2d:
            return self._conv2d(*args, **kwargs)
        if func is F.batch_norm:
            return self._batch_norm(*args, **kwargs)
        return func(*args, **kwargs)

    def _conv2d(
        self, input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
        dilation: Any = 1, groups: int = 1,
    ) -> Tensor:  # fmt: skip
        if input.ndim != 4 or isinstance(padding, str):
            return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
        geometry = _pair(stride), _pair(padding), _pair(dilation), groups
        input = _cast(input)
        output = Convolution.apply(input, _cast(weight), _cast(bias), geometry, self)
        self._last = (output, input, weight, bias, geometry)
        return output

    def _batch_norm(
        self, input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
        bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
    ) -> Tensor:  # fmt: skip
        single = input.numel() == input.shape[1]  # of one value there is no variance; PyTorch says so
        if training and (not self._stop or single):
            return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
        values = input.float() if input.dtype.itemsize < 4 else input
        if training:
            mean, variance = self._held_statistics(values, running_mean, running_var, momentum)
        else:
            assert running_mean is not None
            assert running_var is not None
            mean, variance = running_mean, running_var
        scale = torch.rsqrt(variance + eps) if weight is None else weight * torch.rsqrt(variance + eps)
        shift = -mean * scale if bias is None else bias - mean * scale
        shape = [1, -1] + [1] * (input.ndim - 2)
        last, self._last = self._last, None
        if training or last is None or last[0] is not input or last[2].numel() > input.numel():
            return torch.addcmul(shift.reshape(shape), values, scale.reshape(shape)).to(input.dtype)
        # A layer with fewer weights than activations passes its derivatives through weights that hold the scale: the
        # convolution's output need not be kept, nor multiplied again in every pass back.
        with torch.no_grad():
            output = torch.addcmul(shift.reshape(shape), values, scale.reshape(shape)).to(input.dtype)
        _, images, conv_weight, conv_bias, geometry = last
        folded = conv_weight * scale.reshape(-1, 1, 1, 1)
        shift = shift if conv_bias is None else shift + conv_bias * scale
        return Convolution.apply(images, _cast(folded), _cast(shift), geometry, self, output)

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
        found = re.search(r"derivative for (\S+) is not implemented|(once_differentiable)", str(error))
        if found is None:
            raise
        operation = (found[1] or "a function marked once_differentiable").removesuffix("_backward")
        advice = "use another model or replace that layer"
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

    @staticmethod
    def forward(ctx: Any, value: Tensor, functions: DoubleBackprop) -> Tensor:
        ctx.functions = functions
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None]:  # type: ignore[override]
        return (None if ctx.functions.in_heatmap else gradient), None


def _cast(value: Any) -> Any:
    """As autocast would before a convolution."""
    if value is None or not torch.is_autocast_enabled(value.device.type):
        return value
    return value.to(torch.get_autocast_dtype(value.device.type))


def _pair(value: Any) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)
