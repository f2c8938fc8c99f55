"""How far a sweep is: its trials, what they measured last, and the time left. Reads files only, from any shell.

    heatmap-sweeps status --name SWEEP             # once; or python -m sweeps.status
    watch -n 10 heatmap-sweeps status --name SWEEP

Prints one line on the sweep and a table of its trials, those that train first. Where the storage is an object store,
another machine than the one that drives the sweep sees what Tune's last snapshot brought there.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sweeps.command_line import OfSweep
from sweeps.events import EpochReported, SweepEnded, SweepStarted, TrialStarted, log_in
from sweeps.folder import SETTINGS, is_driven
from sweeps.ranking import with_settings
from sweeps.settings import Sweep, usual_storage
from sweeps.trials import TrialRecord, read_trials
from trainer.command import command, parse
from trainer.errors import UsageError
from trainer.locations import absolute, file_size, folders_in
from trainer.metrics import VAL_ACCURACY, VAL_ROBUST_ACCURACY
from trainer.trial_log import read_report

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, kw_only=True)
class Status:
    """How far a sweep is.

    Args:
        state: preparing, running, ended, failed or interrupted.
        since: time at which it began, or went on, in ms since 1970.
        total: trials it will have at most, those of --seeds too.
        epochs: number of epochs of a whole trial.
        trials: trials that have begun.
        continued: trial that `resume-best` trains further now, None without.
    """

    state: str
    since: int = 0
    total: int = 0
    epochs: int = 0
    trials: list[TrialRecord] = field(default_factory=list, repr=False)
    continued: TrialRecord | None = field(default=None, repr=False)

    @property
    def seconds_left(self) -> float | None:
        """At most, at the pace since the sweep began or went on; None where nothing tells it."""
        paces = [report.time for trial in self.trials for report in trial.reports.values() if report.time >= self.since]
        if self.state != "running" or not paces:
            return None
        unbegun = max(self.total - len(self.trials), 0)
        left = unbegun * self.epochs + sum(
            self.epochs - len(trial.reports) for trial in self.trials if trial.state.runs
        )
        return left * (max(paces) - self.since) / 1000 / len(paces)

    def table(self) -> DataFrame:
        """The trials that have begun, with what the last epoch of each measured; fractions of 1."""
        from pandas import DataFrame

        asked = ("number", "trial_id", "regularizer", "weight", "strength", "seed", "epochs")
        rows = [
            {name: getattr(trial.started, name) for name in asked} | {"state": trial.state.value} | trial.metrics
            for trial in self.trials
        ]
        return DataFrame(rows, columns=None if rows else [*asked, "state"])


def read_status(storage: str, name: str) -> Status:
    """Read the sweep's files.

    Raises:
        UsageError: if there is no such sweep, or it was driven from another machine.
    """
    folder = f"{storage}/{name}"
    if file_size(f"{folder}/{SETTINGS}") is None and name in folders_in(storage):
        if driven := is_driven(Path(folder)):
            return Status(state="preparing")
        why = "data, checkpoint and weights are being prepared, or that failed"  # another machine does, or a bucket
        why = "its preparation ended before the search; give its command again" if driven is False else why
        raise UsageError(f"{name}: no trial has begun; {why}")
    sweep = Sweep.load(name, storage)
    log = log_in(folder, sweep.local_folder)
    if not log.size():
        raise UsageError(f"{name}: its event log lies in {log.path} of the machine that drives it; run this there")
    events = list(log)
    state, since, continued = "running", 0, ""
    for event in events:
        match event:
            case SweepStarted():
                state, since = "running", event.time
            case TrialStarted() if event.resumed_from:  # the sweep itself has ended
                state, continued = "ended", event.trial_id
            case SweepEnded():
                state = {"FINISHED": "ended", "FAILED": "failed"}.get(event.status, "interrupted")
    trials = read_trials(events)
    further = trials.get(continued)
    if is_driven(sweep.local_folder) is False:  # killed before it could log its end
        state, further = "interrupted" if state == "running" else state, None
    if further is not None and further.state.runs:
        _add_reports(further, f"{sweep.trials_folder}/{continued}", sweep.trial.epochs)
    return Status(
        state=state,
        since=since,
        total=sweep.total_trials + sweep.most_repetitions,
        epochs=sweep.trial.epochs,
        trials=[trial for trial in trials.values() if not trial.started.resumed_from],
        continued=further if further is not None and further.state.runs else None,
    )


def _add_reports(trial: TrialRecord, folder: str, trained: int) -> None:
    """Add the epochs after those of the sweep, which are in the trial's own folder alone."""
    for epoch in range(trained + 1, trial.started.epochs + 1):
        if (report := read_report(folder, epoch)) is not None:
            metrics = {"epoch": float(epoch)} | report["metrics"]
            trial.reports[epoch] = EpochReported(time=report["time"], trial_id=trial.started.trial_id, metrics=metrics)


def headline(status: Status, name: str, now: float) -> str:
    """The sweep in one line; `now` in seconds since 1970."""
    if status.state == "preparing":
        return f"{name}: preparing data, checkpoint and weights; no trial has begun"
    done = sum(not trial.state.runs for trial in status.trials)
    running = status.state == "running"
    words = [
        f"{name}: {status.state}",
        f"{done} of at most {status.total} trials done" if running else f"{done} trials",
    ]
    if status.seconds_left is not None:
        words.append(f"at most {status.seconds_left / 60:.0f} min left")
    if status.continued is not None:
        words.append(f"trial {status.continued.started.tag.removesuffix(' resumed')} is being trained further")
    reported = [report.time for trial in _shown(status) for report in trial.reports.values()]
    if (running or status.continued) and reported:
        words.append(f"last epoch reported {max(0, now - max(reported) / 1000) / 60:.0f} min ago")
    return ", ".join(words)


def _shown(status: Status) -> list[TrialRecord]:
    return status.trials if status.continued is None else [*status.trials, status.continued]


def _order(trial: TrialRecord) -> tuple[Any, ...]:
    """Those that run first, then as the ranking has them."""
    figures = (-trial.metrics.get(key, -1.0) for key in (VAL_ROBUST_ACCURACY, VAL_ACCURACY))
    return not trial.state.runs, trial.state != "finished", *figures, trial.started.trial_id


def table(trials: Iterable[TrialRecord]) -> Table:
    """The trials: those that run first, then as they rank."""
    out = Table(
        box=SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 0),
        caption="in % on val, of the last epoch; unfinished trials: on fewer images",
    )
    for name in ("trial", "regularizer"):
        out.add_column(name, no_wrap=True)
    for name in ("strength", "weight", "epoch", "acc.", "robust"):
        out.add_column(name, justify="right", no_wrap=True)
    out.add_column("state", no_wrap=True)
    for trial in sorted(trials, key=_order):
        asked = trial.started
        out.add_row(
            asked.tag,
            with_settings(asked.regularizer, asked.penalty_settings),
            f"{asked.strength:.3g}" if asked.strength else "-",
            f"{asked.weight:.3g}" if asked.weight else "-",
            f"{max(trial.reports, default=0)}/{asked.epochs}",
            *(
                f"{100 * trial.metrics[key]:.1f}" if key in trial.metrics else ""
                for key in (VAL_ACCURACY, VAL_ROBUST_ACCURACY)
            ),
            trial.state,
        )
    return out


@command()
def main(argv: Sequence[str] | None = None) -> int:
    """Print how far the sweep is; the exit status."""
    asked = parse(OfSweep, argv, prog="heatmap-sweeps status", description=__doc__ or "")
    status = read_status(absolute(asked.storage or usual_storage()), asked.name)
    console = Console()
    console.print(headline(status, asked.name, time.time()), markup=False, highlight=False)
    if shown := _shown(status):
        console.print(table(shown))
    return 0


if __name__ == "__main__":
    sys.exit(main())
