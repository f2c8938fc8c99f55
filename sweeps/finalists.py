"""Train the best weight of each regularizer again with new seeds: how much of a lead is luck?

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
from scipy.special import stdtrit  # mlflow brings scipy; the quantile of Student's t has no closed form

from sweeps.events import Event
from sweeps.proposals import named
from sweeps.ranking import R, Row, limit, rank, with_settings
from sweeps.settings import Sweep
from sweeps.trials import read_trials
from trainer.metrics import TEST_ACCURACY, TEST_ROBUST_ACCURACY, VAL_ACCURACY, VAL_ROBUST_ACCURACY

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


def choose(rows: Sequence[R], max_accuracy_drop: float) -> list[R]:
    """The best finished trial of each regularizer, best first.

    By the rule of the pick: robust accuracy, of trials accurate enough. A regularizer that has none of those is
    there with its most robust.
    """
    least = limit(rows, max_accuracy_drop) or 0.0
    best: dict[str, R] = {}
    for row in sorted(rank(rows), key=lambda row: row.accuracy < least):  # stable: the ranking within both halves
        if row.status == "finished":
            best.setdefault(row.regularizer, row)
    return list(best.values())


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
    wanted = choose(rows, sweep.max_accuracy_drop) if sweep.seeds else []
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


def mean_and_margin(values: list[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval (Student's t); NaN where there are too few values."""
    n = len(values)
    mean = fmean(values) if n else math.nan
    return mean, float(stdtrit(n - 1, (1 + LEVEL) / 2)) * stdev(values) / math.sqrt(n) if n > 1 else math.nan


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
            "figures": {figure: _summary(finalist.values(figure)) for figure in FIGURES},
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
        caption="mean ± half of the 95 % interval (Student's t) over the seeds, in %",
    )
    out.add_column("regularizer", no_wrap=True)
    for name in ("strength", "seeds", *FIGURES):
        out.add_column(name.replace("/", "\n").replace("_accuracy", ""), justify="right", no_wrap=True)
    for finalist in finalists:
        out.add_row(
            with_settings(finalist.regularizer, finalist.penalty_settings),
            f"{finalist.strength:.3g}" if finalist.weight else "-",
            str(len(finalist.repetitions)),
            *(_cell(finalist.values(figure)) for figure in FIGURES),
        )
    return out


def _cell(values: list[float]) -> str:
    mean, margin = (100 * value for value in mean_and_margin(values))
    return "-" if math.isnan(mean) else f"{mean:.1f}" if math.isnan(margin) else f"{mean:.1f} ± {margin:.1f}"


def _summary(values: list[float]) -> dict[str, Any]:
    mean, margin = mean_and_margin(values)
    low_high = None if math.isnan(margin) else [mean - margin, mean + margin]
    return {"mean": None if math.isnan(mean) else mean, "interval": low_high, "values": values}


def _key(row: Row, seed: int) -> tuple[Any, ...]:
    return row.regularizer, row.weight, *sorted(row.penalty_settings.items()), seed
