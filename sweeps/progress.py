"""What the terminal shows while a sweep runs: a live table, or plain lines when it is not a terminal."""

import time
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.table import Table

ACCURACY, ROBUST, ATTACKED = "val/accuracy", "val/robust_accuracy", "val/attacked_examples"


class Progress:
    """Trials done and running, the best so far and the time left.

    Args:
        total: trials there will be.
        epochs: of each.
        slots: trials at a time, set once the cluster is known.
    """

    def __init__(self, total: int, epochs: int) -> None:
        self.total, self.epochs, self.done, self.slots = total, epochs, 0, 0
        self.done_before = 0  # by an earlier process of the same sweep
        self.names: dict[str, str] = {}
        self.asked: dict[str, tuple[str, float, float]] = {}  # regularizer, weight, strength
        self.running: dict[str, dict[str, Any]] = {}
        self.best: tuple[float, str] | None = None
        self.started_at = time.monotonic()
        self._live: Live | None = None
        self._console: Console | None = None

    def __getstate__(self) -> dict[str, Any]:
        """A terminal, a clock and running trials do not travel to the process that resumes the sweep."""
        return self.__dict__ | {"_live": None, "_console": None, "running": {}, "done_before": self.done}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, started_at=time.monotonic())

    @property
    def console(self) -> Console:
        """The terminal, found when first needed."""
        if self._console is None:
            self._console = Console()
        return self._console

    def say(self, line: str) -> None:
        """A line that stays."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def started(self, trial_id: str, name: str, regularizer: str, weight: float, strength: float) -> None:
        """A trial began or began again."""
        self.names[trial_id] = name
        self.asked[trial_id] = (regularizer, weight, strength)
        self.running[trial_id] = {}

    def reported(self, trial_id: str, result: dict[str, Any]) -> None:
        """A trial finished an epoch."""
        self.running[trial_id] = result
        done = result.get("epoch") == self.epochs  # before that, few images were attacked
        if done and ROBUST in result and (self.best is None or result[ROBUST] > self.best[0]):
            self.best = (result[ROBUST], self.names.get(trial_id, trial_id))
        if not self.console.is_terminal and result.get("epoch", self.epochs) < self.epochs:
            name = self.names.get(trial_id, trial_id)
            self.say(f"  {name}: epoch {result['epoch']:.0f}/{self.epochs}, {_figures(result)}")

    def ended(self, trial_id: str, status: str, result: dict[str, Any], reason: str = "") -> None:
        """A trial is over; the reason is of one that failed."""
        self.running.pop(trial_id, None)
        self.done += 1
        name = self.names.get(trial_id, trial_id)
        what = reason or _figures(result)
        self.say(f"[{self.done}/{self.total}] {name}: {status}, {what}{self._outlook()}")

    def tick(self) -> None:
        """Refresh the live table, where there is a terminal."""
        if not self.console.is_terminal:
            return
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
        if self.best is not None:
            words += f" | best robust so far {100 * self.best[0]:.1f} % ({self.best[1]})"
        begun = sum(result.get("epoch", 0) / self.epochs for result in self.running.values())
        work = self.done - self.done_before + begun
        if work and self.done < self.total:
            left = (time.monotonic() - self.started_at) / work * (self.total - self.done - begun)
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
        for trial_id, result in list(self.running.items()):
            regularizer, weight, strength = self.asked[trial_id]
            table.add_row(
                trial_id,
                regularizer,
                f"{strength:.3g}" if weight else "-",
                f"{weight:.3g}" if weight else "-",
                f"{result.get('epoch', 0):.0f}/{self.epochs}",
                f"{result['train/images_per_second']:.0f}" if "train/images_per_second" in result else "",
                f"{100 * result[ACCURACY]:.1f}" if ACCURACY in result else "",
                f"{100 * result[ROBUST]:.1f}" if ROBUST in result else "",
                "training" if result else "starting",
            )
        return table


def _figures(result: dict[str, Any]) -> str:
    if ROBUST not in result:
        return "no result"
    images = f" on {result[ATTACKED]:.0f} images" if ATTACKED in result else ""
    return f"accuracy {100 * result[ACCURACY]:.1f} %, robust {100 * result[ROBUST]:.1f} %{images}"
