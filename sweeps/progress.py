"""What the terminal shows while a sweep runs: a live table, or plain lines when it is not a terminal."""

import math
import time
from collections.abc import Iterable
from itertools import islice
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.table import Table

from sweeps.events import EpochReported, Event, TrialEnded, TrialStarted
from sweeps.ranking import with_settings
from sweeps.trials import TrialRecord, mismatch, read_trials, take
from trainer.metrics import TRAIN_IMAGES_PER_SECOND, VAL_ACCURACY, VAL_ATTACKED_EXAMPLES, VAL_ROBUST_ACCURACY

EVERY = 0.5  # seconds between two looks of the live table


class Progress:
    """Trials done and running, the best so far and the time left: a reader of the event log."""

    def __init__(self, total: int, epochs: int, console: Console) -> None:
        self.total, self.epochs, self.console = total, epochs, console
        self.slots = 0  # trials at a time, set once the cluster is known
        self.done_before = 0  # by an earlier process of the same sweep
        self.trials: dict[str, TrialRecord] = {}
        self.running: dict[str, None] = {}  # ids of those that this process has started, in that order
        # Kept at hand: counted over all trials for each line, they would slow down with them.
        self.ended: set[str] = set()  # ids
        self.best: TrialRecord | None = None  # most robust of those that are done; before their end, few are attacked
        self.started_at, self._shown_at = time.monotonic(), -math.inf
        self._live: Live | None = None

    def replay(self, events: Iterable[Event]) -> None:
        """Take what an earlier process of the sweep has logged of these trials, and say nothing of it."""
        self.trials, self.best = read_trials(events), None
        self.ended = {key for key, trial in self.trials.items() if trial.ended is not None}
        self.done_before = self.done
        for trial in self.trials.values():
            self._compare(trial)

    def _compare(self, trial: TrialRecord) -> None:
        metrics = trial.metrics
        if metrics.get("epoch") != self.epochs or VAL_ROBUST_ACCURACY not in metrics:
            return
        if self.best is None or metrics[VAL_ROBUST_ACCURACY] > self.best.metrics[VAL_ROBUST_ACCURACY]:
            self.best = trial

    @property
    def done(self) -> int:
        """Trials that have ended."""
        return len(self.ended)

    def say(self, line: str) -> None:
        """A line that stays."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def take(self, event: Event) -> None:
        """Take what happens now, and say it."""
        take(self.trials, event)
        match event:
            case TrialStarted():
                self.running[event.trial_id] = None
                self.ended.discard(event.trial_id)
            case EpochReported():
                trial, epoch = self.trials[event.trial_id], event.metrics["epoch"]
                self._compare(trial)
                if not self.console.is_terminal and epoch < self.epochs:
                    self.say(f"  {trial.started.name}: epoch {epoch:.0f}/{self.epochs}, {_figures(event.metrics)}")
            case TrialEnded():
                self.running.pop(event.trial_id, None)
                self.ended.add(event.trial_id)
                trial = self.trials[event.trial_id]
                what = event.error or _figures(trial.metrics)
                self.say(f"[{self.done}/{self.total}] {trial.started.name}: {trial.state}, {what}{self._outlook()}")
                if wrong := mismatch(trial.started, event):
                    self.say(f"{event.trial_id}: {wrong}")

    def tick(self) -> None:
        """Refresh the live table, where there is a terminal; not with each of Tune's steps, which would slow down."""
        if not self.console.is_terminal or time.monotonic() - self._shown_at < EVERY:
            return
        self._shown_at = time.monotonic()
        if self._live is None:
            self._live = Live(console=self.console, transient=True, auto_refresh=False)
            self._live.start()
        self._live.update(self._table(), refresh=True)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _outlook(self) -> str:
        """The best so far and the time left, as far as they are known."""
        words = ""
        if (best := self.best) is not None:
            words += f" | best robust so far {100 * best.metrics[VAL_ROBUST_ACCURACY]:.1f} % ({best.started.name})"
        done = self.done
        begun = sum(self.trials[one].metrics.get("epoch", 0) / self.epochs for one in self.running)
        work = done - self.done_before + begun
        if work and done < self.total:
            left = (time.monotonic() - self.started_at) / work * (self.total - done - begun)
            words += f" | about {left / 60:.0f} min left"
        return words

    def _table(self) -> Table:
        slots = f" | {len(self.running)} of {self.slots} slots in use"
        title = f"{self.done} of {self.total} trials done{slots}{self._outlook()}"
        table = Table(title=title, box=SIMPLE_HEAD, show_edge=False, padding=(0, 0))  # 80 columns are few
        for column in ("trial", "regularizer"):
            table.add_column(column, no_wrap=True)
        for column in ("strength", "weight", "epoch", "images/s", "acc.", "robust"):
            table.add_column(column, justify="right", no_wrap=True)
        table.add_column("state", no_wrap=True)
        for trial_id in islice(self.running, max(self.console.height - 6, 1)):
            trial = self.trials[trial_id]
            asked, result = trial.started, trial.metrics
            table.add_row(
                asked.tag,
                with_settings(asked.regularizer, asked.penalty_settings),
                f"{asked.strength:.3g}" if asked.weight else "-",
                f"{asked.weight:.3g}" if asked.weight else "-",
                f"{result.get('epoch', 0):.0f}/{self.epochs}",
                f"{result[TRAIN_IMAGES_PER_SECOND]:.0f}" if TRAIN_IMAGES_PER_SECOND in result else "",
                f"{100 * result[VAL_ACCURACY]:.1f}" if VAL_ACCURACY in result else "",
                f"{100 * result[VAL_ROBUST_ACCURACY]:.1f}" if VAL_ROBUST_ACCURACY in result else "",
                trial.state.value,
            )
        return table


def _figures(result: dict[str, Any]) -> str:
    if VAL_ROBUST_ACCURACY not in result:
        return "no result"
    images = f" on {result[VAL_ATTACKED_EXAMPLES]:.0f} images" if VAL_ATTACKED_EXAMPLES in result else ""
    return f"accuracy {100 * result[VAL_ACCURACY]:.1f} %, robust {100 * result[VAL_ROBUST_ACCURACY]:.1f} %{images}"
