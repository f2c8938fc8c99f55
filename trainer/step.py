"""One training step: cross-entropy plus weighted penalty, one backward pass."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regularizers import Forward, Regularizer
from trainer.data import Batch


@dataclass(frozen=True)
class StepResult:
    """Scalars of one step over this worker's batch, detached."""

    loss: Tensor
    penalty: Tensor
    cross_entropy: Tensor


def set_mode(model: nn.Module, batch_norm: str) -> None:
    """Training mode; under `frozen` batch norm uses and keeps its running statistics."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train(batch_norm != "frozen")


def forward_pass(
    model: nn.Module, batch: Batch, regularizer: Regularizer, generator: torch.Generator | None = None
) -> Forward:
    """Apply the model; the images carry a gradient only where the regularizer looks at it."""
    images = batch.images.detach().requires_grad_(regularizer.needs_heatmap)
    return Forward(images, batch.labels, model(images), generator)


def train_step(
    model: nn.Module,
    batch: Batch,
    regularizer: Regularizer,
    optimizer: torch.optim.Optimizer,
    *,
    label_smoothing: float = 0.0,
    clip_norm: float | None = None,
    generator: torch.Generator | None = None,
) -> StepResult:
    """Loss = mean cross-entropy + weight × mean penalty; under DDP the gradient is the mean over workers."""
    forward = forward_pass(model, batch, regularizer, generator)
    cross_entropy = F.cross_entropy(forward.logits, forward.labels, label_smoothing=label_smoothing)
    penalty = regularizer.penalty(forward).mean()
    loss = cross_entropy + regularizer.weight * penalty
    optimizer.zero_grad()
    loss.backward()
    if clip_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    optimizer.step()
    return StepResult(loss.detach(), penalty.detach(), cross_entropy.detach())
