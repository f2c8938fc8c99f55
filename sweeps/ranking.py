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


def rule(max_accuracy_drop: float) -> str:
    """The selection rule in words."""
    return (
        f"best robust accuracy on {SPLIT} among finished trials at most {100 * max_accuracy_drop:g} percentage points "
        "less accurate than the baseline trials are on average"
    )


def rank(rows: Sequence[R]) -> list[R]:
    """By robust accuracy, then accuracy; trials that did not finish last."""
    return sorted(rows, key=lambda r: (r.status != "finished", -r.robust_accuracy, -r.accuracy, r.trial_id))


def pick(rows: Sequence[R], max_accuracy_drop: float) -> R | None:
    """The trial the rule names, None where no baseline finished."""
    least = limit(rows, max_accuracy_drop)
    if least is None:
        return None
    return next(row for row in rank(rows) if row.status == "finished" and row.accuracy >= least)


def limit(rows: Sequence[Row], max_accuracy_drop: float) -> float | None:
    """The least accuracy that the rule admits, from the mean of the trials that finished without a penalty."""
    found = [row.accuracy for row in rows if row.status == "finished" and row.regularizer == "none"]
    return fmean(found) - max_accuracy_drop - 1e-9 if found else None


def baseline(rows: Sequence[R]) -> R | None:
    """The most accurate trial that finished without a penalty."""
    finished = [row for row in rank(rows) if row.status == "finished" and row.regularizer == "none"]
    return max(finished, key=lambda row: row.accuracy, default=None)


def reason(rows: Sequence[Row], max_accuracy_drop: float) -> str:
    """The pick and why it is that: the rule, the split and the trials it compared."""
    picked, least = pick(rows, max_accuracy_drop), limit(rows, max_accuracy_drop)
    if picked is None or least is None:
        return "No baseline trial finished, so there is nothing to compare with: no pick."
    words = (
        f"Pick: {picked.regularizer}, trial {picked.tag}: {rule(max_accuracy_drop)} "
        f"({100 * (least + max_accuracy_drop):.1f} %)."
    )
    first = rank(rows)[0]
    if first is picked:
        return words
    missing = math.ceil(1000 * (least + max_accuracy_drop - first.accuracy) - 1e-5) / 10
    return (
        f"{words} More robust, but less accurate than that: {first.regularizer}, trial {first.tag}, robust "
        f"{100 * first.robust_accuracy:.1f} % against {100 * picked.robust_accuracy:.1f} %; --resume "
        f"--max-accuracy-drop {missing / 100:g} would pick it."
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
        mark = "→" if row is picked else "*" if row.trial_id in front else ""
        out.add_row(
            mark,
            row.tag,
            with_settings(row.regularizer, row.penalty_settings),
            f"{row.weight:.3g}" if row.weight else "-",
            f"{row.strength:.3g}" if row.weight else "-",
            f"{100 * row.accuracy:.1f}",
            f"{100 * row.robust_accuracy:.1f}",
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


def as_dict(rows: Sequence[Row], picked: Row | None, max_accuracy_drop: float) -> dict[str, Any]:
    """The ranking as plain types, for result.json."""
    reference = baseline(rows)
    return {
        "rule": rule(max_accuracy_drop),
        "split": SPLIT,
        "baseline": reference.trial_id if reference else None,
        "pick": picked.trial_id if picked else None,
        "pareto_front": pareto(rows),
        "trials": [dataclasses.asdict(row) for row in rank(rows)],
    }
