"""Metrics of a model over a split; every example counts once, and the number of workers changes no digit.

Accuracy, loss and calibration are over the whole split, or as much of it as the plan says; attacks and heatmaps, which
cost many passes, over a subset, the same for all trials of a sweep.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import repeat

import torch
from torch import Tensor, nn

from regularizers.base import finite_examples
from trainer.broken_images import refuse_broken
from trainer.cache import ShardCache
from trainer.config import Trial
from trainer.data import Batch, LoaderOptions, eval_loader
from trainer.evaluate.accuracy import accuracy, calibration_error, calibration_gaps
from trainer.evaluate.classify import Classify, classifier
from trainer.evaluate.corruptions import CORRUPTIONS, FAMILIES, SEVERITIES
from trainer.evaluate.faithfulness import agreement, insertion_deletion
from trainer.evaluate.heatmaps import heatmap, similarity, structure
from trainer.evaluate.noise import noisy
from trainer.evaluate.plan import Plan
from trainer.evaluate.sums import Sums
from trainer.metrics import (
    ACCURACY,
    ATTACKED_EXAMPLES,
    BROKEN_EXAMPLES,
    CALIBRATION_ERROR,
    CORRUPTED_ACCURACY,
    EXAMPLES,
    MAJORITY,
    ROBUST_ACCURACY,
    SUBSET_ACCURACY,
    Metrics,
    attacked_accuracy,
    corruption_accuracy,
    family_accuracy,
    metric,
    noise_accuracy,
)
from trainer.normalization import Normalization
from trainer.preprocess import Transform
from trainer.shards import Shards


@dataclass(frozen=True)
class Measured:
    """What an evaluation found.

    Args:
        metrics: means over the examples, `split/name`.
        withstood: `1` for each attacked example that withstood the first attack and `0` for the others, in the order of
            the split: trials that were attacked on the same images are compared image by image.
    """

    metrics: Metrics
    withstood: str


def evaluate(
    model: nn.Module,
    shards: Shards,
    trial: Trial,
    plan: Plan,
    device: torch.device,
    cache: ShardCache | None = None,
    progress: Callable[[str, float], None] = lambda stage, done: None,
) -> Metrics:
    """The metrics of `measure`."""
    return measure(model, shards, trial, plan, device, cache, progress).metrics


def measure(
    model: nn.Module,
    shards: Shards,
    trial: Trial,
    plan: Plan,
    device: torch.device,
    cache: ShardCache | None = None,
    progress: Callable[[str, float], None] = lambda stage, done: None,
) -> Measured:
    """Measure what the plan says.

    Args:
        model: bare model, not its DDP wrapper (ranks may see unequal numbers of batches).
        trial: configuration; it gives batch size, image size, normalization, precision and the seed of attacks.
        progress: callback; it takes the name of one of the two passes and the fraction of it that is done.

    Raises:
        UsageError: if too many images cannot be decoded; the few that may are left out.
    """
    transform, options = Transform(trial.image_size, train=False), LoaderOptions.of_worker(trial, device, cache)

    def batches(examples: int | None, stage: str) -> Iterator[Batch]:
        expected, seen = _asked(examples, shards) / options.world_size, 0
        with eval_loader(shards, transform, options, examples=examples) as loader:
            for batch in loader.epoch():
                assert batch.indices is not None
                whole = finite_examples(batch.images)
                seen += len(whole)
                if whole.any():
                    yield Batch(batch.images[whole], batch.labels[whole], batch.indices[whole.cpu()])
                progress(stage, min(seen / expected, 1.0))

    sums = Sums()
    with classifier(model, trial.precision) as classify:
        for batch in batches(plan.examples, "accuracy"):
            with torch.no_grad():
                logits = classify(batch.images)
                sums.add(accuracy(logits, batch.labels), calibration_gaps(logits, batch.labels))
            sums.labels.update(batch.labels.tolist())
        for batch in batches(plan.attacked, "robustness and heatmaps"):
            values = _measure_subset(classify, batch, trial.normalization, trial.seed, plan)
            sums.add(values)
            if ROBUST_ACCURACY in values:
                assert batch.indices is not None
                sums.withstood |= zip(batch.indices.tolist(), values[ROBUST_ACCURACY].tolist(), strict=True)
    sums = sums.over_workers(device)
    examples, attacked = sums.counts[ACCURACY], sums.counts[SUBSET_ACCURACY]
    for whole, wanted in ((attacked, plan.attacked), (examples, plan.examples)):
        asked = _asked(wanted, shards)
        if asked:
            refuse_broken(asked - whole, asked, shards)
    metrics: Metrics = {
        CALIBRATION_ERROR: calibration_error(sums.calibration_means(examples)),
        EXAMPLES: float(examples),
        BROKEN_EXAMPLES: float(_asked(plan.examples, shards) - examples),
        ATTACKED_EXAMPLES: float(attacked),
    }
    metrics |= sums.means()
    if plan.majority:
        metrics[MAJORITY] = max(sums.labels.values(), default=0) / (examples or 1)
    if plan.full:
        metrics |= _corrupted_accuracies(metrics)
    withstood = "".join("1" if sums.withstood[index] else "0" for index in sorted(sums.withstood))
    return Measured({metric(shards.split, name): value for name, value in metrics.items()}, withstood)


def _asked(examples: int | None, shards: Shards) -> int:
    return shards.total if examples is None else min(examples, shards.total)


def _measure_subset(
    classify: Classify, batch: Batch, normalization: Normalization, seed: int, plan: Plan
) -> dict[str, Tensor]:
    """Everything that is measured on the subset, per example."""
    images, labels = batch.images, batch.labels
    assert batch.indices is not None
    indices = batch.indices.tolist()

    def generators(purpose: str) -> list[torch.Generator]:
        """One for each example and purpose, the same on any worker and in any order."""
        names = (f"{seed}/{purpose}/{index}" for index in indices)
        numbers = (int.from_bytes(sha256(name.encode()).digest()[:7], "big") for name in names)
        return [torch.Generator().manual_seed(number) for number in numbers]

    def hits(changed: Tensor) -> Tensor:
        with torch.no_grad():
            return classify(changed).argmax(1) == labels

    heatmaps = heatmap(classify, images, labels)
    values = similarity(heatmaps, images) | structure(heatmaps) | {SUBSET_ACCURACY: hits(images)}
    for number, attack in enumerate(plan.attacks):
        _, withstood = attack(classify, images, labels, generators(attack.key), normalization)
        values[attacked_accuracy(attack.key)] = withstood
        if number == 0:
            values[ROBUST_ACCURACY] = withstood
    if not plan.full:
        return values
    values |= insertion_deletion(classify, images, labels, heatmaps)
    values |= agreement(classify, images, labels, heatmaps, generators("smoothgrad"))
    pixels = normalization.to_pixels(images)
    for name, changed in noisy(pixels, generators):
        values[noise_accuracy(name)] = hits(normalization.from_pixels(changed))
    levels = (255 * pixels).round().to(torch.uint8).cpu()
    for name, corruption in CORRUPTIONS.items():
        for severity in SEVERITIES:
            corrupted = [corruption(*one) for one in zip(levels, repeat(severity), generators(name), strict=False)]
            changed = normalization.normalize(torch.stack(corrupted).to(images.device))
            values[corruption_accuracy(name, severity)] = hits(changed)
    return values


def _corrupted_accuracies(values: Metrics) -> Metrics:
    """Mean over the corruptions of each family and their severities, and the mean of those."""
    families = {}
    for family, corruptions in FAMILIES.items():
        every = [values[corruption_accuracy(one.__name__, level)] for one in corruptions for level in SEVERITIES]
        families[family_accuracy(family)] = math.fsum(every) / len(every)
    return families | {CORRUPTED_ACCURACY: math.fsum(families.values()) / len(families)}
