"""What the driver does as trials begin, report and end: it writes the event log and tells of it."""

import contextlib
from typing import Any

import ray
from ray import tune

from sweeps import interrupt
from sweeps.capacity import slots
from sweeps.events import EpochReported, Event, TrialEnded
from sweeps.messages import TrialsBegan, TrialsEnded, TrialsGoOn, note, tell
from sweeps.outcomes import trial_started
from sweeps.recording import Recording
from sweeps.settings import Sweep
from trainer.epoch_report import REPORTED
from trainer.errors import UsageError
from trainer.trial_log import read_report

# Ray's words where a process was ended from outside
KILLED = ("died unexpectedly", "has died", "temporarily unavailable", "OutOfMemory")
MOST_FAILURES = 30  # of a trial, whatever was lost


class SweepCallback(tune.Callback):
    """The one writer of the event log while Tune runs.

    Args:
        trials: number of trials of this run of Tune.
        units: calibrated unit of each regularizer's weight.
        part: folder of this run of Tune.
    """

    def __init__(self, sweep: Sweep, recording: Recording, trials: int, units: dict[str, float], part: str) -> None:
        self.sweep, self.recording, self.units, self.part = sweep, recording, units, part
        self.trials, self._begun = trials, False
        self._nodes: dict[str, set[str]] = {}  # that were there when a trial that trains was last started

    def setup(self, *_: Any, **info: Any) -> None:
        """After an interruption, it begins once more."""
        self._begun = False

    def get_state(self) -> dict[str, Any]:
        """Nothing; but the log in the object store should not be older than Tune's snapshot."""
        self.recording.log.back_up()
        return {}

    def on_step_begin(self, iteration: int, trials: list, **info: Any) -> None:
        if not self._begun:  # the log may know of others, which Tune had not kept yet when its process was killed
            self._begun, known = True, {trial.trial_id for trial in trials}
            earlier = tuple(event for event in self.recording.log if getattr(event, "trial_id", None) in known)
            tell(TrialsBegan(self.trials, self.sweep.trial.epochs, slots(self.sweep, self.trials), earlier))

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self._make_up_for_lost_nodes(trial)
        self._tell(trial_started(self.sweep, self.units, self.part, trial.trial_id, trial.config))

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
        if not result.get("failed"):
            metrics = {name: result[name] for name in REPORTED if name in result}
            self._tell(EpochReported(trial_id=trial.trial_id, metrics=metrics))

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self._tell(trial_ended(self.sweep, trial.trial_id, trial.last_result or {}))

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        error = failure_in_words(last_failure(trial))
        self._tell(trial_ended(self.sweep, trial.trial_id, trial.last_result or {}, error))

    def on_step_end(self, iteration: int, trials: list, **info: Any) -> None:
        tell(TrialsGoOn())
        if interrupt.asked():  # else nobody looks at all trials after each of Tune's steps
            interrupt.end_if_asked({t.trial_id for t in trials if t.status == t.RUNNING}, note)

    def on_experiment_end(self, trials: list, **info: Any) -> None:
        tell(TrialsEnded())

    def _tell(self, event: Event) -> None:
        self.recording.append(event)
        tell(event)
        if isinstance(event, TrialEnded):
            self._nodes.pop(event.trial_id, None)

    def _make_up_for_lost_nodes(self, trial: Any) -> None:
        """A trial that went with its node has one try more: what is lost uses up none of those that errors have.

        Looked at only when the trial starts again, for Ray may tell of the process before it knows of the node.
        """
        there = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        if self._nodes.get(trial.trial_id, there) - there and trial.max_failures < MOST_FAILURES:
            trial.max_failures += 1
        self._nodes[trial.trial_id] = there


def trial_ended(sweep: Sweep, trial_id: str, result: dict[str, Any], error: str = "") -> TrialEnded:
    """The event of a trial that is over, with all that its last epoch measured.

    Args:
        result: the last that Tune has of it.
        error: why Tune gave it up, empty if it did not.
    """
    error = error or result.get("failed", "") or ("" if "epoch" in result else "it ended without a result")
    epoch, report = int(result.get("epoch", 0)), None
    with contextlib.suppress(OSError, UsageError):  # no storage for now: what went through Tune has to do
        report = read_report(f"{sweep.trials_folder}/{trial_id}", epoch) if epoch else None
    metrics = report["metrics"] if report else {name: value for name, value in result.items() if "/" in name}
    finite = {name: value if abs(value) < float("inf") else 0.0 for name, value in metrics.items()}
    return TrialEnded(
        trial_id=trial_id,
        error=error,
        epoch=epoch,
        diverged=bool(result.get("diverged")),
        digest=str(result.get("digest", "")),
        checkpoint=str(result.get("checkpoint_folder", "")),
        metrics=finite if epoch else {},
    )


def last_failure(trial: Any) -> str:
    """The trace of a trial's last failure; Tune keeps all of them in one file."""
    return str(trial.get_error() or "").rpartition("\nFailure # ")[2]


def failure_in_words(error: Any) -> str:
    """What an exception's trace ends with, or advice where a process was killed again and again."""
    text = str(error or "").strip()
    if any(sign in text for sign in KILLED):
        return (
            "a process of it was killed on every attempt; if the node ran out of memory, lower batch_size, "
            "loader_workers or max_concurrent"
        )
    return (text.splitlines() or ["it failed without a message"])[-1][:300]
