"""What the driver does as trials begin, report and end: MLflow, the terminal, the scheduler's state."""

import pickle
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import TrialScheduler

from sweeps import interrupt
from sweeps.capacity import slots
from sweeps.outcomes import mismatch, run_name, status_of, trial_of
from sweeps.progress import Progress
from sweeps.proposals import FIXED
from sweeps.search import keep_rungs
from sweeps.settings import Sweep
from sweeps.spool import Spool
from sweeps.tracking import Tracking

# Ray's words where a process was ended from outside
KILLED = ("died unexpectedly", "has died", "temporarily unavailable", "OutOfMemory")
MOST_FAILURES = 30  # of a trial, whatever was lost


class SweepCallback(tune.Callback):
    """Ends MLflow runs, carries the scheduler's state over a restart, shows progress."""

    def __init__(
        self,
        sweep: Sweep,
        tracking: Tracking,
        scheduler: TrialScheduler,
        trials: int,
        units: dict[str, float],
        folder: str,
    ) -> None:
        self.sweep, self.tracking, self.scheduler, self.units, self.folder = sweep, tracking, scheduler, units, folder
        self.progress = Progress(trials, sweep.trial.epochs)
        self._nodes: dict[str, set[str]] = {}  # that were there when a trial was last started

    def get_state(self) -> dict[str, bytes]:
        """Tune restores the searcher, but not the scheduler's rungs nor what callbacks know."""
        return {"scheduler": pickle.dumps(self.scheduler.__dict__), "progress": pickle.dumps(self.progress)}

    def set_state(self, state: dict[str, bytes]) -> None:
        self.scheduler.__dict__.update(pickle.loads(state["scheduler"]))
        self.progress = pickle.loads(state["progress"])

    def setup(self, *_: Any, **info: Any) -> None:
        """The cluster may be another than before an interruption."""
        self.progress.slots = slots(self.sweep, self.progress.total)

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        asked = trial_of(self.sweep, trial.config)
        strength = asked.weight / self.units[asked.regularizer] if asked.weight else 0.0
        name = run_name(self.sweep, trial.config)
        Spool(self.tracking.folder, trial.trial_id).begin(
            name,
            {"finalist": asked.regularizer} if FIXED in trial.config else {},
            {"strength": strength, "workers": self.sweep.placement.workers},
        )
        self._make_up_for_lost_nodes(trial)
        self.progress.started(trial.trial_id, name, asked.regularizer, asked.weight, strength)

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
        self.progress.reported(trial.trial_id, result)

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        result = trial.last_result or {}
        self._ended(trial, status_of(self.sweep, trial.config, result), result.get("failed", ""))
        wrong = mismatch(self.sweep, trial.config, result) if result and not result.get("failed") else None
        if wrong:
            self.progress.say(f"{trial.trial_id}: {wrong}")

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self._ended(trial, "failed", failure_in_words(last_failure(trial)))

    def on_step_end(self, iteration: int, trials: list, **info: Any) -> None:
        self.progress.tick()
        interrupt.end_if_asked({t.trial_id for t in trials if t.status == t.RUNNING}, self.progress.say)

    def on_experiment_end(self, trials: list, **info: Any) -> None:
        self.progress.close()
        keep_rungs(self.scheduler, self.folder)

    def _make_up_for_lost_nodes(self, trial: Any) -> None:
        """A trial that went with its node has one try more: what is lost uses up none of those that errors have.

        Looked at only when the trial starts again, for Ray may tell of the process before it knows of the node.
        """
        there = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        if self._nodes.get(trial.trial_id, there) - there and trial.max_failures < MOST_FAILURES:
            trial.max_failures += 1
        self._nodes[trial.trial_id] = there

    def _ended(self, trial: Any, status: str, reason: str = "") -> None:
        result = trial.last_result or {}
        tell_end(self.tracking, trial.trial_id, status, result)
        self.progress.ended(trial.trial_id, status, result, reason)


def last_failure(trial: Any) -> str:
    """The trace of a trial's last failure; Tune keeps all of them in one file."""
    return str(trial.get_error() or "").rpartition("\nFailure # ")[2]


def failure_in_words(error: Any) -> str:
    """What an exception's trace ends with, or advice where a process was killed again and again."""
    text = str(error or "").strip()
    if any(sign in text for sign in KILLED):
        return (
            "a process of it was killed each time it was tried; if the node ran out of memory, lower --batch-size, "
            "--loader-workers or --max-concurrent"
        )
    return (text.splitlines() or [""])[-1][:300]


def tell_end(tracking: Tracking, trial_id: str, status: str, result: dict[str, Any]) -> None:
    """Tell MLflow how a trial ended, and which configuration its worker says it trained."""
    tags = {"checkpoint": str(result.get("checkpoint_folder", "")), "effective_digest": str(result.get("digest", ""))}
    tracking.end_trial(trial_id, status, tags)
