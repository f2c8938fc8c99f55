"""Heatmap and weight gradients by plain autograd, without this project's derivatives: the truth of the tests."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regularizers import REGULARIZERS, Forward
from trainer.step import RegularizedLoss, set_mode

WEIGHT = 0.7
MODES = ("frozen", "stop", "flow")


@dataclass
class Gradients:
    """Of one regularized step, penalty `l2`: logits, heatmap, and the loss's gradient by every parameter."""

    logits: Tensor
    heatmap: Tensor
    parameters: dict[str, Tensor]

    @classmethod
    def of(cls, model: nn.Module, forward: Forward) -> "Gradients":
        heatmap = forward.heatmap(forward.class_logits)
        loss = forward.losses.mean() + WEIGHT * heatmap.square().mean()
        named = dict(model.named_parameters())
        found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        zeros = (torch.zeros_like(p) if g is None else g for p, g in zip(named.values(), found, strict=True))
        return cls(forward.logits.detach(), heatmap.detach(), dict(zip(named, zeros, strict=True)))


def ours(model: nn.Module, images: Tensor, labels: Tensor, mode: str, double_backprop: str = "fast") -> Gradients:
    """By the project's own step on a copy of the model, which thus keeps its statistics."""
    model = copy.deepcopy(model)
    set_mode(model, mode)
    torch.manual_seed(1)  # of dropout
    loss = RegularizedLoss(model, REGULARIZERS["l2"](weight=WEIGHT), batch_norm=mode, double_backprop=double_backprop)
    return Gradients.of(model, loss.forward_pass(images, labels))


def plain(model: nn.Module, images: Tensor, labels: Tensor, mode: str) -> Gradients:
    """By plain autograd; `stop` in two passes, the second with the statistics of the first, attached to its graph."""
    model = copy.deepcopy(model)
    set_mode(model, mode)
    batch_norm, moments = F.batch_norm, []

    def keep(x, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5):
        if training:
            dims = [0, *range(2, x.ndim)]
            moments.append((x.mean(dims, keepdim=True), x.var(dims, correction=0, keepdim=True)))
        return batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)

    def replay(x, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5):
        if not training:
            return batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
        mean, variance = moments.pop(0)
        shape = [1, -1] + [1] * (x.ndim - 2)
        normalized = (x - mean) / torch.sqrt(variance + eps)
        normalized = normalized if weight is None else normalized * weight.reshape(shape)
        return normalized if bias is None else normalized + bias.reshape(shape)

    def apply(images: Tensor, function: Callable) -> Tensor:
        torch.manual_seed(1)
        with pytest.MonkeyPatch.context() as patch, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            patch.setattr(F, "batch_norm", function)
            patch.setattr(F, "hardsigmoid", lambda x, inplace=False: (x + 3).clamp(0, 6) / 6)  # PyTorch's has no second
            return model(images.clone())

    if mode == "stop":
        apply(images, keep)
    images = images.clone().requires_grad_()
    return Gradients.of(model, Forward(images, labels, apply(images, replay if mode == "stop" else batch_norm)))


def assert_equal(found: Gradients, truth: Gradients, tolerance: float = 1e-9) -> None:
    """Relative in the Euclidean norm, each tensor for itself; where the truth is 0, as after a batch norm that takes a
    bias out again, relative to all of the gradient.
    """  # fmt: skip
    whole = torch.cat([gradient.flatten() for gradient in truth.parameters.values()]).norm()
    for name in ("logits", "heatmap"):
        a, b = getattr(found, name), getattr(truth, name)
        assert b.any(), f"{name} are zero: nothing is compared"
        assert (a - b).norm() <= tolerance * b.norm(), f"{name} off by {float((a - b).norm() / b.norm()):.1e}"
    assert whole > 0
    for name, b in truth.parameters.items():
        a = found.parameters[name]
        off = float((a - b).norm())
        assert off <= tolerance * float(b.norm()) + 1e-12 * float(whole), f"{name} off by {off / float(b.norm()):.1e}"
