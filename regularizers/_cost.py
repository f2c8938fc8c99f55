"""What a penalty costs: the time of a regularized step in plain steps, on a small network."""

import time

import torch
import torch.nn.functional as F
from torch import nn

from regularizers._samples import usual_side
from regularizers.base import Forward, Regularizer, checked

EXAMPLES, CLASSES, SIDE = 16, 10, 32
REPETITIONS = 10  # the fastest counts


def cost(regularizer: Regularizer) -> float:
    """Processor time of a forward and backward pass with the penalty over that of one without."""
    side = max(SIDE, usual_side(regularizer))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(16, CLASSES),
        )  # fmt: skip
        images, labels = torch.randn(EXAMPLES, 3, side, side), torch.randint(CLASSES, (EXAMPLES,))
        return _seconds(model, images, labels, regularizer) / _seconds(model, images, labels, None)


def _seconds(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, regularizer: Regularizer | None) -> float:
    times = []
    for _ in range(1 + REPETITIONS):  # the first warms up
        started = time.process_time()
        if regularizer is None:
            loss = F.cross_entropy(model(images), labels)
        else:
            inputs = images.clone().requires_grad_(regularizer.needs_heatmap)
            forward = Forward(inputs, labels, model(inputs))
            loss = forward.losses.mean() + checked(regularizer, forward).mean()
        torch.autograd.grad(loss, list(model.parameters()))
        times.append(time.process_time() - started)
    return min(times[1:])
