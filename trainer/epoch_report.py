"""What `fit` reports after each epoch, typed, and the flat dictionaries that Ray and checkpoints hold of it.

Imports no PyTorch: the process that drives a trial reads these reports too.
"""

import math
from dataclasses import dataclass, field, fields
from typing import Any

from trainer.metrics import (
    TRAIN_IMAGES_PER_SECOND,
    VAL_ACCURACY,
    VAL_ATTACKED_EXAMPLES,
    VAL_EXAMPLES,
    VAL_ROBUST_ACCURACY,
    WORST,
    Metrics,
)

# What the search, early stopping and the terminal need of an epoch; the rest stays in the trial's log.
REPORTED = (
    "epoch", "step", "images_seen", "diverged", VAL_ACCURACY, VAL_ROBUST_ACCURACY, VAL_EXAMPLES,
    VAL_ATTACKED_EXAMPLES, TRAIN_IMAGES_PER_SECOND,
)  # fmt: skip
PARTIAL = "partial"  # marks a report that brings a checkpoint within an epoch and no metrics
FAILED = "failed"  # the reason, in the report of a trial that is not to be retried
DIGEST, CHECKPOINT_FOLDER = "digest", "checkpoint_folder"
WITHSTOOD = "withstood"


@dataclass(frozen=True, kw_only=True)
class EpochReport:
    """The state of a training after an epoch.

    Args:
        epoch: number of epochs done.
        step: number of steps done, over all epochs.
        images_seen: number of training images of all workers, over all epochs.
        diverged: whether the training loss is not finite; nothing is evaluated then, and the training ends.
        metrics: what was measured, `split/name`.
        withstood: after the last epoch, which examples of val and test withstood, as `Measured` has it, by split.
    """

    epoch: int
    step: int
    images_seen: int
    diverged: bool
    metrics: Metrics
    withstood: dict[str, str] = field(default_factory=dict)

    def is_last(self, epochs: int) -> bool:
        """Whether the training ends here, given the number of epochs it is to have."""
        return self.epoch == epochs or self.diverged

    def to_dict(self) -> dict[str, Any]:
        """Everything in one dictionary, as checkpoints hold it: floats, but for `withstood`."""
        counts = {name: float(getattr(self, name)) for name in _COUNTS}
        return self.metrics | counts | {WITHSTOOD: self.withstood}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "EpochReport":
        """The report of `to_dict`."""
        return cls(
            epoch=int(values["epoch"]),
            step=int(values["step"]),
            images_seen=int(values["images_seen"]),
            diverged=bool(values["diverged"]),
            metrics={name: value for name, value in values.items() if name not in (*_COUNTS, WITHSTOOD)},
            withstood=values.get(WITHSTOOD, {}),  # checkpoints of earlier versions lack it
        )

    def for_ray(self, digest: str, checkpoint_folder: str | None) -> dict[str, Any]:
        """What goes through Ray Train and Tune, whose search takes finite numbers only.

        Args:
            checkpoint_folder: newest checkpoint, if there is one.
        """
        everything = self.to_dict()
        reported = {name: everything[name] for name in REPORTED if name in everything}
        values: dict[str, Any] = {name: value if math.isfinite(value) else 0.0 for name, value in reported.items()}
        if checkpoint_folder is not None:
            values[CHECKPOINT_FOLDER] = checkpoint_folder
        return values | {DIGEST: digest}


_COUNTS = tuple(one.name for one in fields(EpochReport) if one.name not in ("metrics", WITHSTOOD))


def failed_report(reason: str) -> dict[str, Any]:
    """The report of a trial that failed with a non-retryable error."""
    return WORST | {FAILED: reason}


def partial_report() -> dict[str, Any]:
    """The report that goes with a checkpoint within an epoch."""
    return WORST | {PARTIAL: True}
