"""How sure is the pick? It is compared with every rival image by image and seed by seed, on test.

What comes of it is one sentence, the same in terminal, ranking.txt, report and MLflow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import stdtrit  # mlflow brings scipy; the quantile of Student's t has no closed form

from sweeps.finalists import LEVEL, Finalist, as_dicts
from sweeps.ranking import NO_PICK, Row, candidates
from sweeps.settings import Sweep
from trainer.config import in_words
from trainer.metrics import TEST, TEST_ROBUST_ACCURACY
from trainer.trial_log import read_report

if TYPE_CHECKING:
    from sweeps.results import SweepResult


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The pick against another regularizer, in robust accuracy on test.

    Args:
        regularizer: the other one.
        difference: robust accuracy of the pick less that of the other, as a fraction of 1.
        interval: the interval of that, corrected for the number of comparisons.
        images: number of images.
        seeds: number of seeds that both were trained with; 1 of trials of the search, which have one each.
        comparisons: number of comparisons that this one is of.
    """

    regularizer: str
    difference: float
    interval: tuple[float, float]
    images: int
    seeds: int
    comparisons: int

    @property
    def tie(self) -> bool:
        """Whether the interval contains 0."""
        return self.interval[0] <= 0 <= self.interval[1]


def paired_intervals(outcomes: Sequence[Sequence[str]]) -> list[tuple[float, tuple[float, float]]]:
    """The share of the first model less that of each other one, and its interval from images and seeds together.

    Both are random, and so is what is measured on them: the squared half width is the sum of that of the images, whose
    means over the seeds are compared pair by pair, and that of the seeds. To the images two halves are added that one
    model alone has right, and one that both have or neither (Agresti and Min), so that few images are never sure. What
    a seed does is estimated from all models together, seeds being blocks: with three seeds, two models alone would tell
    little of it. With one seed the images alone count. Bonferroni corrects for the number of comparisons.

    Args:
        outcomes: of each model, for each seed, `1` where an image withstood and `0` where not; seeds and images are the
            same for all.

    References:
        Agresti, Min: Simple improved confidence intervals for comparing matched proportions. Statistics in Medicine 24,
        2005.
        Zou, Donner: Construction of confidence limits about effect measures: a general approach. Statistics in Medicine
        27, 2008. That the squares of half widths are added.
        Montgomery: Design and Analysis of Experiments, chapter 4 on randomized blocks.
    """
    bits = np.array([[[character == "1" for character in one] for one in model] for model in outcomes], dtype=float)
    models, seeds, images = bits.shape
    level = 1 - (1 - LEVEL) / 2 / (models - 1)
    half_of_seeds = 0.0
    if seeds > 1:
        means, freedom = bits.mean(2), (models - 1) * (seeds - 1)
        left = means - means.mean(1, keepdims=True) - means.mean(0, keepdims=True) + means.mean()
        half_of_seeds = float(stdtrit(freedom, level)) * math.sqrt(2 * (left**2).sum() / freedom / seeds)
    found = []
    for other in bits[1:]:
        of_images = (bits[0] - other).mean(0)
        center = float(of_images.sum()) / (images + 2)
        variance = (float((of_images**2).sum() + 1) / (images + 2) - center**2) / (images + 2)
        half = math.hypot(float(stdtrit(images + 1, level)) * math.sqrt(variance), half_of_seeds)
        found.append((float(of_images.mean()), (max(center - half, -1.0), min(center + half, 1.0))))
    return found


def compare(sweep: Sweep, rows: Sequence[Row], finalists: Sequence[Finalist]) -> list[Comparison]:
    """The pick against the best trial of every other regularizer that might have been picked, the runner-up first.

    Empty where there is no pick, or no record of the images.

    Args:
        sweep: settings of the sweep.
        rows: trials of its search.
        finalists: those trained again, empty without.
    """
    found = candidates(rows, sweep.max_accuracy_drop, as_dicts(finalists))
    best: dict[str, Row] = {}
    for row, _ in found:
        best.setdefault(row.regularizer, row)
    again = {one.chosen: one.repetitions for one in finalists if one.repetitions}
    recorded = {name: _outcomes(sweep, again.get(row.trial_id, (row,))) for name, row in best.items()}
    if len(recorded) < 2 or not all(recorded.values()):
        return []
    seeds = set.intersection(*map(set, recorded.values()))
    outcomes = [[its[seed] for seed in sorted(seeds)] or [next(iter(its.values()))] for its in recorded.values()]
    images = {len(one) for model in outcomes for one in model}
    if len(images) > 1:  # other data, or others of them broken
        return []
    return [
        Comparison(
            regularizer=name,
            difference=difference,
            interval=interval,
            images=min(images),
            seeds=len(outcomes[0]),
            comparisons=len(best) - 1,
        )
        for name, (difference, interval) in zip(list(best)[1:], paired_intervals(outcomes), strict=True)
    ]


def _outcomes(sweep: Sweep, trials: Sequence[Row]) -> dict[int, str]:
    """Which test images withstood, by seed; of trials whose log has it."""
    reports = {row.seed: read_report(f"{sweep.trials_folder}/{row.trial_id}", sweep.trial.epochs) for row in trials}
    return {seed: report["withstood"][TEST] for seed, report in reports.items() if report and report.get("withstood")}


def verdict(result: SweepResult) -> str:
    """What the sweep found and how sure that is, in the sentences that everything says."""
    picked = result.pick
    if picked is None:
        return NO_PICK
    again = next((one for one in result.finalists if one["chosen"] == picked.trial_id and one["trials"]), None)
    robust = again["figures"][TEST_ROBUST_ACCURACY]["mean"] if again else picked.metrics.get(TEST_ROBUST_ACCURACY, 0.0)
    of = f"the mean of {len(again['trials'])} new seeds" if again else "of one training"
    what = [f"strength {picked.strength:.3g}"] if picked.weight else []
    what += [*in_words(picked.penalty_settings), f"robust accuracy {100 * robust:.1f} % on test, {of}"]
    found = [f"Pick: {picked.regularizer}, trial {picked.tag}: {', '.join(what)}"]
    found += ["; no penalty made the model more robust at an accuracy the rule allows"] * (picked.regularizer == "none")
    shown = [one for one in result.comparisons[1:] if one.regularizer == "none"]
    compared = [*result.comparisons[:1], *shown]
    leads = [_lead(one, before) for one, before in zip(compared, [None, *compared], strict=False)]
    if not leads:
        return "".join([*found, "."])
    one = result.comparisons[0]
    seeds = f"{one.seeds} seeds" if one.seeds > 1 else "one seed, whose luck is not in the interval"
    corrected = f", corrected for {one.comparisons} comparisons" if one.comparisons > 1 else ""
    return "".join([*found, ". ", "; ".join(leads), f" ({one.images} images, {seeds}{corrected})."])


def _lead(one: Comparison, before: Comparison | None) -> str:
    """How far the pick is ahead or behind; the verb stands where it changes."""
    who = "the baseline" if one.regularizer == "none" else f"the runner-up {one.regularizer}"
    verb, sign = ("trails", -1) if one.difference < 0 else ("leads", 1)
    same = before is not None and (before.difference < 0) == (one.difference < 0)
    subject = "" if same else f"{'It' if before is None else 'it'} {verb} "
    low, high = (f"{100 * sign * bound:+.1f}" for bound in one.interval[::sign])
    return (
        f"{subject}{who} by {100 * abs(one.difference):.1f} points, 95 % interval {low} to {high}"
        f"{': a tie' if one.tie else ''}"
    )
