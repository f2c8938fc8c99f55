"""How far a sweep is: its trials, what they measured last, and the time left. Reads files only, from any shell.

    heatmap-sweeps status --name SWEEP             # once; or python -m sweeps.status
    watch -n 10 heatmap-sweeps status --name SWEEP

Prints one line on the sweep and a table of its trials, those that train first. Where the storage is an object store,
another machine than the one that drives the sweep sees what Tune's last snapshot brought there.
"""

import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sweeps.command_line import OfSweep
from sweeps.events import SweepEnded, SweepStarted, log_in
from sweeps.folder import SETTINGS, is_driven
from sweeps.ranking import with_settings
from sweeps.settings import Sweep, usual_storage
from sweeps.trials import TrialRecord, read_trials
from trainer.command import command, parse
from trainer.errors import UsageError
from trainer.locations import absolute, file_size, folders_in
from trainer.metrics import VAL_ACCURACY, VAL_ROBUST_ACCURACY


@dataclass(frozen=True, kw_only=True)
class Status:
    """How far a sweep is.

    Args:
        state: running, ended, failed or interrupted.
        since: time at which it began, or went on, in ms since 1970.
        total: trials it will have at most, those of --seeds too.
        epochs: number of epochs of a whole trial.
        trials: trials that have begun.
    """

    state: str
    since: int
    total: int
    epochs: int
    trials: list[TrialRecord]

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


def read_status(storage: str, name: str) -> Status:
    """Read the sweep's files.

    Raises:
        UsageError: if there is no such sweep, or it was driven from another machine.
    """
    folder = f"{storage}/{name}"
    if file_size(f"{folder}/{SETTINGS}") is None and name in folders_in(storage):
        raise UsageError(f"{name}: no trial has begun; data, checkpoint and weights are being prepared, or that failed")
    sweep = Sweep.load(name, storage)
    log = log_in(folder, sweep.local_folder)
    if not log.size():
        raise UsageError(f"{name}: its event log lies in {log.path} of the machine that drives it; run this there")
    events = list(log)
    state, since = "running", 0
    for event in events:
        match event:
            case SweepStarted():
                state, since = "running", event.time
            case SweepEnded():
                state = {"FINISHED": "ended", "FAILED": "failed"}.get(event.status, "interrupted")
    if state == "running" and is_driven(sweep) is False:  # killed before it could log its end
        state = "interrupted"
    trials = [trial for trial in read_trials(events).values() if not trial.started.resumed_from]
    total = sweep.total_trials + sweep.most_repetitions
    return Status(state=state, since=since, total=total, epochs=sweep.trial.epochs, trials=trials)


def headline(status: Status, name: str, now: float) -> str:
    """The sweep in one line; `now` in seconds since 1970."""
    done = sum(not trial.state.runs for trial in status.trials)
    running = status.state == "running"
    words = [
        f"{name}: {status.state}",
        f"{done} of at most {status.total} trials done" if running else f"{done} trials",
    ]
    if status.seconds_left is not None:
        words.append(f"at most {status.seconds_left / 60:.0f} min left")
    reported = [report.time for trial in status.trials for report in trial.reports.values()]
    if running and reported:
        words.append(f"last epoch reported {max(0, now - max(reported) / 1000) / 60:.0f} min ago")
    return ", ".join(words)


def _order(trial: TrialRecord) -> tuple[Any, ...]:
    """Those that run first, then as the ranking has them."""
    figures = (-trial.metrics.get(key, -1.0) for key in (VAL_ROBUST_ACCURACY, VAL_ACCURACY))
    return not trial.state.runs, trial.state != "finished", *figures, trial.started.trial_id


def table(trials: Iterable[TrialRecord], epochs: int) -> Table:
    """The trials: those that run first, then as they rank."""
    out = Table(
        box=SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 0),
        caption="in % on val, of the last epoch; before the end on fewer images",
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
            f"{len(trial.reports)}/{epochs}",
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
    console.print(table(status.trials, status.epochs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
