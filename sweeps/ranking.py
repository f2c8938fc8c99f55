"""Rank the trials and pick one by a named rule."""

import csv
import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from statistics import fmean
from typing import Any, TypeVar

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sweeps.events import tag
from sweeps.proposals import named
from trainer.config import in_words
from trainer.metrics import VAL_ACCURACY, VAL_ROBUST_ACCURACY


@dataclass(frozen=True, kw_only=True)
class Row:
    """One trial as it ended; accuracies are fractions of 1 on the validation split, `metrics` all that was measured.

    Its number is that of the trial in the study, in the order in which the trials were asked for; `penalty_settings`
    are those of the regularizer that are not its defaults.
    """

    trial_id: str
    regularizer: str
    weight: float
    strength: float
    seed: int
    status: str
    accuracy: float
    robust_accuracy: float
    heatmap_ssim: float
    heatmap_correlation: float
    checkpoint: str
    number: int | None = None
    metrics: dict[str, float] = field(default_factory=dict, repr=False)
    penalty_settings: dict[str, float] = field(default_factory=dict)

    @property
    def tag(self) -> str:
        """Its number for people, such as #07."""
        return tag(self.number, self.trial_id)


R = TypeVar("R", bound=Row)

SPLIT = "val"
NO_PICK = "No baseline trial finished, so there is nothing to compare with: no pick."
ROUNDING = 1e-9  # of means and differences of accuracies
Finalists = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """What the rule compares with: means over the trials without a penalty that finished.

    Args:
        accuracy: accuracy on val.
        robust_accuracy: robust accuracy on val.
        trials: number of those trials.
    """

    accuracy: float
    robust_accuracy: float
    trials: int


def rule(max_accuracy_drop: float, seeds: int = 0) -> str:
    """The selection rule in words.

    Args:
        max_accuracy_drop: how much less accurate than the baseline the pick may be, as a fraction.
        seeds: number of new seeds with which finalists are trained again; 0 without a final round.
    """
    what = f"mean over {seeds} new seeds of the robust accuracy" if seeds else "robust accuracy"
    of = "finalists" if seeds else "finished trials"
    return (
        f"best {what} on {SPLIT} among {of} at most {100 * max_accuracy_drop:g} percentage points less accurate than "
        "the mean of the baselines"
    )


def rank(rows: Sequence[R]) -> list[R]:
    """By robust accuracy, then accuracy; trials that did not finish last."""
    return sorted(rows, key=lambda r: (r.status != "finished", -r.robust_accuracy, -r.accuracy, r.trial_id))


def candidates(rows: Sequence[R], max_accuracy_drop: float, finalists: Finalists = ()) -> list[tuple[R, float]]:
    """The trials that the rule admits, with the robust accuracy it goes by, best first; none without a baseline.

    With a final round these are the finalists, and the means over their repetitions. The baseline is always one.

    Args:
        rows: trials of the search.
        max_accuracy_drop: how much less accurate than the baseline the pick may be, as a fraction.
        finalists: what `sweeps.finalists.as_dicts` has of those that were trained again.
    """
    limit = least_accuracy(rows, max_accuracy_drop, finalists)
    if limit is None:
        return []
    ranked = [row for row in rank(rows) if row.status == "finished"]
    repeated = {one["chosen"]: one["figures"] for one in finalists if one["trials"]}
    if any(one["trials"] and one["regularizer"] != "none" for one in finalists):
        standing = [(row, repeated[row.trial_id]) for row in ranked if row.trial_id in repeated]
        found = [(row, its[VAL_ACCURACY]["mean"], its[VAL_ROBUST_ACCURACY]["mean"]) for row, its in standing]
    else:
        found = [(row, row.accuracy, row.robust_accuracy) for row in ranked]
    admitted = [(row, robust) for row, accuracy, robust in found if row.regularizer == "none" or accuracy >= limit]
    return sorted(admitted, key=lambda one: -one[1])  # stable: by rank where they are equal


def pick(rows: Sequence[R], max_accuracy_drop: float, finalists: Finalists = ()) -> R | None:
    """The trial the rule names, None where no baseline finished; arguments as in `candidates`."""
    return next((row for row, _ in candidates(rows, max_accuracy_drop, finalists)), None)


def baseline(rows: Sequence[Row], finalists: Finalists = ()) -> Baseline | None:
    """What the rule compares with, repetitions of the baseline too; None where none finished."""
    finished = [row for row in rows if row.status == "finished" and row.regularizer == "none"]
    if not finished:
        return None
    again = [one["figures"] for one in finalists if one["regularizer"] == "none"]
    accuracies = [row.accuracy for row in finished] + [v for one in again for v in one[VAL_ACCURACY]["values"]]
    robust = [row.robust_accuracy for row in finished] + [
        value for one in again for value in one[VAL_ROBUST_ACCURACY]["values"]
    ]
    return Baseline(accuracy=fmean(accuracies), robust_accuracy=fmean(robust), trials=len(accuracies))


def least_accuracy(rows: Sequence[Row], max_accuracy_drop: float, finalists: Finalists = ()) -> float | None:
    """What the rule asks of a pick, None without a baseline."""
    reference = baseline(rows, finalists)
    return None if reference is None else reference.accuracy - max_accuracy_drop - ROUNDING


def reason(rows: Sequence[Row], max_accuracy_drop: float, seeds: int = 0, finalists: Finalists = ()) -> str:
    """Why the pick is that: the rule, and what another would name; arguments as in `rule` and `candidates`."""
    picked, reference = pick(rows, max_accuracy_drop, finalists), baseline(rows, finalists)
    if picked is None or reference is None:
        return NO_PICK
    each = f"{reference.trials} trials, mean accuracy" if reference.trials > 1 else "1 trial, accuracy"
    words = f"The rule: {rule(max_accuracy_drop, seeds)} ({each} {100 * reference.accuracy:.1f} %)."
    first = rank(rows)[0]
    least = reference.accuracy - max_accuracy_drop - ROUNDING
    if first is picked or first.accuracy >= least or first.regularizer == "none":
        return words
    missing = math.ceil(1000 * (least + max_accuracy_drop - first.accuracy) - 1e-5) / 10
    return (
        f"{words} More robust in the search, but less accurate than that: {first.regularizer}, trial {first.tag}, "
        f"robust {100 * first.robust_accuracy:.1f} %; --resume --max-accuracy-drop {missing / 100:g} "
        f"{'admits' if seeds else 'would pick'} it."
    )


def pareto(rows: Sequence[Row]) -> list[str]:
    """Ids of the finished trials that no other beats in accuracy and robust accuracy at once."""
    finished = [row for row in rows if row.status == "finished"]

    def beaten(row: Row) -> bool:
        return any(
            other.accuracy >= row.accuracy
            and other.robust_accuracy >= row.robust_accuracy
            and (other.accuracy, other.robust_accuracy) != (row.accuracy, row.robust_accuracy)
            for other in finished
        )

    return [row.trial_id for row in finished if not beaten(row)]


def table(rows: Sequence[Row], picked: Row | None) -> Table:
    """The ranking for a terminal."""
    front = pareto(rows)
    out = Table(
        title="Ranking",
        box=SIMPLE_HEAD,
        show_edge=False,  # 80 columns are few
        padding=(0, 0),
        caption=f"→ pick  * unbeaten in both accuracies (in % of {SPLIT})\nunfinished trials last: fewer images",
    )
    for name in ("", "trial", "regularizer"):
        out.add_column(name, no_wrap=True)
    for name in ("weight", "strength", "acc.", "robust", "SSIM", "corr."):
        out.add_column(name, justify="right", no_wrap=True)
    out.add_column("state", no_wrap=True)
    for row in rank(rows):
        mark = "→" if row is picked else ""
        out.add_row(
            mark,
            row.tag,
            with_settings(row.regularizer, row.penalty_settings),
            f"{row.weight:.3g}" if row.weight else "-",
            f"{row.strength:.3g}" if row.weight else "-",
            f"{100 * row.accuracy:.1f}",
            f"{100 * row.robust_accuracy:.1f}{'*' if row.trial_id in front else ' '}",
            f"{row.heatmap_ssim:+.3f}",
            f"{row.heatmap_correlation:+.3f}",
            row.status,
            style="bold" if row is picked else None,
        )
    return out


def with_settings(regularizer: str, penalty_settings: Mapping[str, float]) -> str:
    """The name and, each on a line of its own, settings that are not the defaults."""
    return "\n".join([regularizer, *in_words(penalty_settings)])


def as_text(rows: Sequence[Row], picked: Row | None) -> str:
    """The ranking as plain text, for a file."""
    return plain(table(rows, picked))


def as_csv(rows: Sequence[Row]) -> str:
    """The ranking with everything that was measured, for a spreadsheet; MLflow shows it as a table."""
    keys = sorted({key for row in rows for key in row.metrics})
    settings = {row.trial_id: named(row.regularizer, row.penalty_settings) for row in rows}
    changed = sorted({name for own in settings.values() for name in own})
    columns = ("number", "trial_id", "regularizer", "weight", "strength", "seed", "status")
    stream = StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow((*columns, *changed, *keys))
    for row in rank(rows):
        own = (settings[row.trial_id].get(name, "") for name in changed)
        measured = (row.metrics.get(key, "") for key in keys)
        writer.writerow((*(getattr(row, name) for name in columns), *own, *measured))
    return stream.getvalue()


def plain(content: Table) -> str:
    """A table as plain text."""
    console = Console(file=StringIO(), width=100, record=True)
    console.print(content)
    return console.export_text()


def as_dict(
    rows: Sequence[Row], picked: Row | None, max_accuracy_drop: float, seeds: int = 0, finalists: Finalists = ()
) -> dict[str, Any]:
    """The ranking as plain types, for result.json."""
    reference = baseline(rows, finalists)
    return {
        "rule": rule(max_accuracy_drop, seeds),
        "split": SPLIT,
        "baseline": dataclasses.asdict(reference) if reference else None,
        "pick": picked.trial_id if picked else None,
        "pareto_front": pareto(rows),
        "finalists": list(finalists),
        "trials": [dataclasses.asdict(row) for row in rank(rows)],
    }
