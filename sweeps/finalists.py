"""Train the best weights again with new seeds: the pick is made of these repetitions.

The seeds are the same for all and none of the search's: a weight was chosen for what it did with its own seed.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from statistics import fmean, stdev
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from scipy.special import ndtri, stdtrit  # mlflow brings scipy; the quantile of Student's t has no closed form

from sweeps.events import Event
from sweeps.proposals import named
from sweeps.ranking import R, Row, least_accuracy, rank, with_settings
from sweeps.settings import Sweep
from sweeps.trials import read_trials
from trainer.metrics import (
    ATTACKED_EXAMPLES,
    EXAMPLES,
    TEST_ACCURACY,
    TEST_ROBUST_ACCURACY,
    VAL_ACCURACY,
    VAL_ROBUST_ACCURACY,
    metric,
)

LEVEL = 0.95
FIGURES = (VAL_ACCURACY, VAL_ROBUST_ACCURACY, TEST_ACCURACY, TEST_ROBUST_ACCURACY)


@dataclass(frozen=True, kw_only=True)
class Finalist:
    """The best weight of a regularizer and what its repetitions measured.

    Args:
        regularizer: name of the regularizer.
        weight: the absolute one.
        strength: the same in calibrated units.
        penalty_settings: settings of the regularizer, those that are not the defaults.
        chosen: id of the trial of the search that had this weight.
        repetitions: those that finished.
    """

    regularizer: str
    weight: float
    strength: float
    chosen: str
    repetitions: tuple[Row, ...] = ()
    penalty_settings: dict[str, float] = field(default_factory=dict)

    def values(self, figure: str) -> list[float]:
        """A figure of every repetition."""
        return [row.metrics[figure] for row in self.repetitions]

    def images(self, figure: str) -> int:
        """Number of images on which a figure was measured."""
        count = ATTACKED_EXAMPLES if "robust" in figure else EXAMPLES
        name = metric(figure.partition("/")[0], count)
        return min((int(row.metrics.get(name, 0)) for row in self.repetitions), default=0)


def choose(rows: Sequence[R], max_accuracy_drop: float) -> list[R]:
    """The best finished trial of each regularizer, best first.

    By the rule of the pick: robust accuracy, of trials accurate enough. A regularizer that has none of those is
    there with its most robust.
    """
    least = least_accuracy(rows, max_accuracy_drop) or 0.0
    best: dict[str, R] = {}
    for row in sorted(rank(rows), key=lambda row: row.accuracy < least):  # stable: the ranking within both halves
        if row.status == "finished":
            best.setdefault(row.regularizer, row)
    return list(best.values())


def choose_finalists(sweep: Sweep, events: Iterable[Event], rows: Sequence[R]) -> list[R]:
    """The trials that are trained again: the baseline, and the best trials of the best regularizers that it admits.

    One whose repetitions turn out too inaccurate is followed by the next of the ranking, as long as no more than twice
    as many as wanted were tried.
    """
    least = least_accuracy(rows, sweep.max_accuracy_drop)
    if least is None or not sweep.seeds:
        return []
    admitted = [row for row in rank(rows) if row.status == "finished" and row.accuracy >= least]
    done = {_key(row, row.seed): row for row in repetitions(events) if row.status == "finished"}

    def again(row: Row) -> list[Row]:
        return [done[key] for seed in sweep.new_seeds if (key := _key(row, seed)) in done]

    first = next(row for row in rank(rows) if row.status == "finished" and row.regularizer == "none")
    limit = least_accuracy([*rows, *again(first)], sweep.max_accuracy_drop) or 0.0
    chosen: list[R] = []
    standing: set[str] = set()
    for row in admitted:
        if len(standing) == sweep.finalists or len(chosen) == 2 * sweep.finalists:
            break
        if row.regularizer == "none" or row.regularizer in standing:
            continue
        chosen.append(row)
        repeated = again(row)
        if len(repeated) < sweep.seeds or fmean(one.accuracy for one in repeated) >= limit:
            standing.add(row.regularizer)
    return [first, *chosen] if chosen else []


def missing(sweep: Sweep, events: Iterable[Event], finalists: list[Row]) -> list[dict[str, Any]]:
    """Configurations that have no finished repetition yet; round by round, so that an interruption is fair too."""
    done = {_key(row, row.seed) for row in repetitions(events) if row.status == "finished"}
    return [
        {"regularizer": row.regularizer, "seed": seed, "number": row.number}
        | ({f"weight_{row.regularizer}": row.weight} if row.weight else {})
        | named(row.regularizer, row.penalty_settings)
        for seed in sweep.new_seeds
        for row in finalists
        if _key(row, seed) not in done
    ]


def folder_of(configs: list[dict[str, Any]]) -> str:
    """Name of the Tune folder that runs just these: whoever wants the same again goes on there."""
    return "finalists-" + sha256(json.dumps(configs, sort_keys=True).encode()).hexdigest()[:8]


def repetitions(events: Iterable[Event]) -> list[Row]:
    """All that ended, of whichever finalists."""
    found = (trial.result() for trial in read_trials(events).values() if trial.started.repeats)
    return [row for row in found if row is not None]


def gather(sweep: Sweep, events: Iterable[Event], rows: Sequence[Row]) -> list[Finalist]:
    """Finalists with what their repetitions measured."""
    done = {_key(row, row.seed): row for row in repetitions(events) if row.status == "finished"}
    wanted = choose_finalists(sweep, events, rows)
    keys = {row.trial_id: [_key(row, seed) for seed in sweep.new_seeds] for row in wanted}
    return [
        Finalist(
            regularizer=row.regularizer,
            weight=row.weight,
            strength=row.strength,
            penalty_settings=row.penalty_settings,
            chosen=row.trial_id,
            repetitions=tuple(done[key] for key in keys[row.trial_id] if key in done),
        )
        for row in wanted
    ]


def mean_and_margin(values: list[float], images: int) -> tuple[float, float]:
    """Mean of a share over the seeds and half the width of its 95 % interval, from images and seeds; NaN of no values.

    Its square is the sum of that of the seeds (Student's t) and that of a share of so many images, two right and two
    wrong ones added (Agresti and Coull), so that it is never 0.

    Args:
        values: the share with each seed.
        images: number of images on which it was measured, the same for all seeds.

    References:
        Agresti, Coull: Approximate is better than "exact" for interval estimation of binomial proportions. The American
        Statistician 52, 1998.
    """
    if not values:
        return math.nan, math.nan
    mean, n = fmean(values), len(values)
    share = (mean * images + 2) / (images + 4)
    of_images = float(ndtri((1 + LEVEL) / 2)) * math.sqrt(share * (1 - share) / (images + 4))
    of_seeds = float(stdtrit(n - 1, (1 + LEVEL) / 2)) * stdev(values) / math.sqrt(n) if n > 1 else 0.0
    return mean, math.hypot(of_images, of_seeds)


def as_dicts(finalists: Iterable[Finalist]) -> list[dict[str, Any]]:
    """The finalists as plain types, for result.json; NaN is null there."""
    return [
        {
            "regularizer": finalist.regularizer,
            "weight": finalist.weight,
            "strength": finalist.strength,
            "penalty_settings": finalist.penalty_settings,
            "chosen": finalist.chosen,
            "trials": [row.trial_id for row in finalist.repetitions],
            "seeds": [row.seed for row in finalist.repetitions],
            "figures": {figure: _summary(finalist, figure) for figure in FIGURES},
        }
        for finalist in finalists
    ]


def table(finalists: list[Finalist]) -> Table:
    """The finalists for a terminal."""
    out = Table(
        title="Best weights, trained again",
        box=SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 0),
        caption="mean ± half of its 95 % interval, from images and seeds, in %",
    )
    out.add_column("regularizer", no_wrap=True)
    for name in ("strength", "seeds", *FIGURES):
        out.add_column(name.replace("/", "\n").replace("_accuracy", ""), justify="right", no_wrap=True)
    for finalist in finalists:
        out.add_row(
            with_settings(finalist.regularizer, finalist.penalty_settings),
            f"{finalist.strength:.3g}" if finalist.weight else "-",
            str(len(finalist.repetitions)),
            *(_cell(finalist, figure) for figure in FIGURES),
        )
    return out


def _cell(finalist: Finalist, figure: str) -> str:
    mean, margin = (100 * value for value in mean_and_margin(finalist.values(figure), finalist.images(figure)))
    return "-" if math.isnan(mean) else f"{mean:.1f} ± {margin:.1f}"


def _summary(finalist: Finalist, figure: str) -> dict[str, Any]:
    values = finalist.values(figure)
    mean, margin = mean_and_margin(values, finalist.images(figure))
    if not values:
        return {"mean": None, "interval": None, "values": values}
    return {"mean": mean, "interval": [max(mean - margin, 0.0), min(mean + margin, 1.0)], "values": values}


def _key(row: Row, seed: int) -> tuple[Any, ...]:
    return row.regularizer, row.weight, *sorted(row.penalty_settings.items()), seed
