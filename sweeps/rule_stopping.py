"""Which running trials the selection rule would refuse: only those are worth stopping.

The rule admits a trial whose accuracy lies at most so far below the baseline's, and picks the most robust of them. What
a trial has lost early it may make up for, and what it has gained may grow, so both are given room: by default a trial
may win back half of what it lost against the baseline at the same epoch, and double its gain in robust accuracy.
"""

import math
from dataclasses import dataclass

from scipy.special import ndtri

CONFIDENCE = 0.975
ROOM = 0.5  # of the final change, the least that an early epoch shows; at the last epoch it shows all


@dataclass(frozen=True)
class Share:
    """A measured share of images.

    Args:
        value: fraction of 1.
        images: how many it was measured on.
    """

    value: float
    images: int

    def bounds(self, confidence: float) -> tuple[float, float]:
        """Wilson's bounds; the true share lies beyond each with a probability of 1 - confidence."""
        z, n, p = float(ndtri(confidence)), self.images, self.value
        center, half = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
        return (center - half) / (1 + z**2 / n), (center + half) / (1 + z**2 / n)


def surely_below(share: Share, other: Share, by: float = 0.0, confidence: float = CONFIDENCE) -> bool:
    """Whether a share lies below another by more than `by`, with confidence (Newcombe's interval of a difference).

    The images of both count as drawn apart. Where they are the same ones, the confidence is higher than stated.
    """
    _, high = share.bounds(confidence)
    low, _ = other.bounds(confidence)
    return other.value - share.value - math.hypot(high - share.value, other.value - low) > by


def refused(
    accuracy: Share,
    baseline: Share,
    max_accuracy_drop: float,
    confidence: float = CONFIDENCE,
    room: float = ROOM,
) -> bool:
    """Whether the rule would refuse a trial for its accuracy.

    Args:
        accuracy: of the trial, so far.
        baseline: accuracy of the trials without a penalty at the same epoch.
        max_accuracy_drop: how far below the baseline the pick may lie at the end.
        confidence: that a trial which is refused is not admissible, given `room`.
        room: share of its lost accuracy that a trial keeps for good, at least; 1 at the last epoch.
    """
    return surely_below(accuracy, baseline, max_accuracy_drop / room, confidence)


def outdone(
    robust: Share,
    baseline: Share,
    best: Share,
    confidence: float = CONFIDENCE,
    room: float = ROOM,
) -> bool:
    """Whether the rule would prefer an admissible trial that has finished.

    Args:
        robust: robust accuracy of the trial, so far.
        baseline: robust accuracy of the trials without a penalty.
        best: that of the trial which has finished.
        confidence: that a trial which is outdone would not have become better, given `room`.
        room: share of its gain in robust accuracy that a trial has made, at least; 1 at the last epoch.
    """
    needed = baseline.value + room * (best.value - baseline.value)
    return best.value > baseline.value and surely_below(robust, Share(needed, best.images), 0.0, confidence)


def images_needed(limit: float, distance: float, confidence: float = CONFIDENCE, power: float = 0.8) -> int:
    """Images on which a trial that lies beyond a limit is found to do so.

    Args:
        limit: share that is refused below, known exactly.
        distance: of the trial's true share below it.
        confidence: of the test.
        power: probability with which the test finds it.
    """
    share = limit - distance
    deviations = ndtri(confidence) * math.sqrt(limit * (1 - limit)) + ndtri(power) * math.sqrt(share * (1 - share))
    return math.ceil((deviations / distance) ** 2)
