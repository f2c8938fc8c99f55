"""How far a sweep is: its trials, what they measured last, and the time left. Reads files only, from any shell.

    python -m sweeps.status --name SWEEP             # once
    watch -n 10 python -m sweeps.status --name SWEEP

Prints one line on the sweep and a table of its trials, those that train first. Where the storage is an object store,
another machine than the one that drives the sweep sees what Tune's last snapshot brought there.
"""

import argparse
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sweeps.events import SweepEnded, SweepStarted, log_in
from sweeps.trials import TrialRecord, read_trials
from trainer.arguments import Parser
from trainer.config import UsageError
from trainer.locations import absolute, folders_in, read_json

ACCURACY, ROBUST = "val/accuracy", "val/robust_accuracy"


@dataclass(frozen=True, kw_only=True)
class Status:
    """How far a sweep is.

    Args:
        state: running, ended, failed or interrupted.
        since: when it began, or went on, in ms since 1970.
        total: trials it will have at most, those of --seeds too.
        epochs: of a whole trial.
        trials: that have begun.
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
    settings: dict[str, Any] | None = read_json(f"{storage}/{name}/settings.json")
    if settings is None and name in folders_in(storage):
        raise UsageError(f"{name}: no trial has begun; data, checkpoint and weights are being prepared, or that failed")
    if settings is None:
        known = [folder for folder in sorted(folders_in(storage)) if read_json(f"{storage}/{folder}/settings.json")]
        raise UsageError(f"no sweep {name!r} under {storage}; there is {', '.join(known) or 'none'}")
    log = log_in(f"{storage}/{name}", Path(settings.get("local_dir") or storage, name))
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
    names = {"none", *settings["regularizers"]}
    each = settings["trials_per_regularizer"] + sum(settings["extensions"]) + settings["seeds"]
    trials = [trial for trial in read_trials(events).values() if not trial.started.resumed_from]
    return Status(
        state=state, since=since, total=len(names) * each, epochs=settings["trial"]["epochs"], trials=trials
    )  # fmt: skip


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


def table(trials: Iterable[TrialRecord], epochs: int) -> Table:
    """The trials: those that run first, then by robust accuracy."""
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
    for trial in sorted(
        trials, key=lambda one: (not one.state.runs, -one.metrics.get(ROBUST, -1), one.started.trial_id)
    ):
        asked = trial.started
        out.add_row(
            asked.tag,
            asked.regularizer,
            f"{asked.strength:.3g}" if asked.strength else "-",
            f"{asked.weight:.3g}" if asked.weight else "-",
            f"{len(trial.reports)}/{epochs}",
            *(f"{100 * trial.metrics[key]:.1f}" if key in trial.metrics else "" for key in (ACCURACY, ROBUST)),
            trial.state,
        )
    return out


def parse() -> argparse.Namespace:
    """Command line."""
    parser = Parser(prog="python -m sweeps.status", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--name", required=True, metavar="SWEEP", help="of the sweep")
    parser.add_argument("--storage", metavar="WHERE", default="runs", help="of the sweep (default ./runs)")
    return parser.parse_args()


def main() -> int:
    """Print how far the sweep is; the exit status."""
    given = parse()
    try:
        status = read_status(absolute(given.storage), given.name)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    console = Console()
    console.print(headline(status, given.name, time.time()), markup=False, highlight=False)
    console.print(table(status.trials, status.epochs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
