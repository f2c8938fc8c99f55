"""Sums over the examples of all workers that show neither the order of batches nor the number of workers."""

import math
from collections import Counter
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from trainer.distributed import gather_over_workers
from trainer.metrics import Metrics


@dataclass
class Sums:
    """The sums of each batch, which are added up exactly at the end.

    Args:
        values: sums of each batch, by metric.
        counts: number of examples in them.
        calibration: sums of `calibration_gaps` by bin, for each batch.
        labels: number of examples by class.
        withstood: whether each attacked example withstood the first attack, by its index in the split.
    """

    values: dict[str, list[float]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    calibration: list[list[float]] = field(default_factory=list)
    labels: Counter[int] = field(default_factory=Counter)
    withstood: dict[int, bool] = field(default_factory=dict)

    def add(self, values: dict[str, Float[Tensor, " b"]], calibration: Float[Tensor, "b bins"] | None = None) -> None:
        """Take what was measured on each example of a batch; one transfer from the device for all of it."""
        columns = [value.double() for value in values.values()]
        gaps = [] if calibration is None else list(calibration.T)
        sums = torch.stack([*columns, *gaps]).sum(1).tolist()
        for name, value in zip(values, sums, strict=False):
            self.values.setdefault(name, []).append(value)
            self.counts[name] += len(columns[0])
        if calibration is not None:
            self.calibration.append(sums[len(columns) :])

    def over_workers(self, device: torch.device) -> "Sums":
        """Sums of all workers together."""
        total = Sums()
        for values, counts, calibration, labels, withstood in gather_over_workers(
            (self.values, self.counts, self.calibration, self.labels, self.withstood), device
        ):
            for name, sums in values.items():
                total.values.setdefault(name, []).extend(sums)
            total.counts += counts
            total.calibration += calibration
            total.labels += labels
            total.withstood |= withstood
        return total

    def means(self) -> Metrics:
        """Mean over the examples of every metric."""
        return {name: math.fsum(sums) / (self.counts[name] or 1) for name, sums in self.values.items()}

    def calibration_means(self, examples: int) -> list[float]:
        """Mean over the examples of each bin's gaps."""
        return [math.fsum(sums) / (examples or 1) for sums in zip(*self.calibration, strict=True)]
