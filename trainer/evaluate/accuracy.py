"""Accuracy, loss and calibration, per example."""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from trainer.metrics import ACCURACY, LOSS, TOP5_ACCURACY

BINS = 15  # of the calibration error, as in Guo et al.


def accuracy(logits: Float[Tensor, "b k"], labels: Int[Tensor, " b"]) -> dict[str, Float[Tensor, " b"]]:
    """Whether the class is the first guess and whether it is among five, and the loss in nats."""
    logits = logits.double()
    top = logits.topk(min(5, logits.shape[1])).indices
    return {
        ACCURACY: (logits.softmax(1).max(1).indices == labels).double(),
        TOP5_ACCURACY: (top == labels[:, None]).any(1).double(),
        LOSS: F.cross_entropy(logits, labels, reduction="none"),
    }


def calibration_gaps(logits: Float[Tensor, "b k"], labels: Int[Tensor, " b"]) -> Float[Tensor, "b bins"]:
    """Hit minus confidence of each example, in the column of its bin of confidence; 0 in the others.

    `calibration_error` takes the sum over all examples.
    """
    confidence, guess = logits.double().softmax(1).max(1)
    # Bins are open below: a confidence on an edge belongs to the bin that ends there.
    bins = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    return F.one_hot(bins, BINS) * ((guess == labels).double() - confidence)[:, None]


def calibration_error(gaps: Sequence[float]) -> float:
    """The expected calibration error.

    Args:
        gaps: mean over all examples of `calibration_gaps`, for each bin.

    References:
        Guo, Pleiss, Sun, Weinberger: On Calibration of Modern Neural Networks. ICML 2017.
    """
    return math.fsum(map(abs, gaps))
