"""The trials of a sweep as its event log has them, and the state each is in."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from sweeps.events import EpochReported, Event, PartEnded, SweepEnded, TrialEnded, TrialStarted
from sweeps.ranking import Row
from trainer.metrics import (
    TEST,
    VAL,
    VAL_ACCURACY,
    VAL_HEATMAP_CORRELATION,
    VAL_HEATMAP_SSIM,
    VAL_ROBUST_ACCURACY,
    metric,
)

EVALUATED = metric(VAL, ""), metric(TEST, "")  # how names of metrics of these splits begin


class TrialState(StrEnum):
    """Where a trial is."""

    STARTING = "starting"
    TRAINING = "training"
    FINISHED = "finished"
    STOPPED = "stopped"  # early, by the scheduler
    DIVERGED = "diverged"
    FAILED = "failed"
    INTERRUPTED = "interrupted"  # with the sweep

    @property
    def runs(self) -> bool:
        """Whether it has not ended."""
        return self in (TrialState.STARTING, TrialState.TRAINING)


@dataclass(kw_only=True)
class TrialRecord:
    """What the log says of one trial.

    Args:
        started: how it began, the last time.
        reports: reports of its epochs; one that is reported again, after a restart, counts once.
        ended: how it ended, None while it runs.
        interrupted: whether the sweep ended before it.
    """

    started: TrialStarted
    reports: dict[int, EpochReported] = field(default_factory=dict)
    ended: TrialEnded | None = None
    interrupted: bool = False

    @property
    def state(self) -> TrialState:
        """Derived from the above, here alone."""
        if self.ended is not None:
            if self.ended.error or mismatch(self.started, self.ended) or not self.ended.epoch:
                return TrialState.FAILED
            if self.ended.diverged:
                return TrialState.DIVERGED
            return TrialState.FINISHED if self.ended.epoch == self.started.epochs else TrialState.STOPPED
        if self.interrupted:
            return TrialState.INTERRUPTED
        return TrialState.TRAINING if self.reports else TrialState.STARTING

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics that its last epoch reported."""
        return self.reports[max(self.reports)].metrics if self.reports else {}

    def result(self) -> Row | None:
        """How it ended, for the ranking; None of one that has not."""
        if self.ended is None:
            return None
        metrics = self.ended.metrics
        return Row(
            trial_id=self.started.trial_id,
            number=self.started.number,
            regularizer=self.started.regularizer,
            weight=self.started.weight,
            strength=self.started.strength,
            penalty_settings=self.started.penalty_settings,
            seed=self.started.seed,
            status=self.state.value,
            accuracy=metrics.get(VAL_ACCURACY, 0.0),
            robust_accuracy=metrics.get(VAL_ROBUST_ACCURACY, 0.0),
            heatmap_ssim=metrics.get(VAL_HEATMAP_SSIM, 0.0),
            heatmap_correlation=metrics.get(VAL_HEATMAP_CORRELATION, 0.0),
            checkpoint=self.ended.checkpoint,
            metrics={
                name: value for name, value in metrics.items() if name.startswith((metric(VAL, ""), metric(TEST, "")))
            },
        )


def mismatch(started: TrialStarted, ended: TrialEnded) -> str:
    """What to say where a worker trained something else than it was asked to; empty where it did not."""
    if ended.error or ended.digest in ("", started.digest):
        return ""
    return f"its worker trained configuration {ended.digest}, not {started.digest}"


def read_trials(events: Iterable[Event]) -> dict[str, TrialRecord]:
    """Trials by their ids, in the order in which they began."""
    trials: dict[str, TrialRecord] = {}
    for event in events:
        take(trials, event)
    return trials


def take(trials: dict[str, TrialRecord], event: Event) -> None:
    """Add what one event says."""
    match event:
        case SweepEnded():
            for trial in trials.values():
                trial.interrupted = trial.ended is None
        case TrialStarted():
            before = trials.get(event.trial_id)
            trials[event.trial_id] = TrialRecord(started=event, reports=before.reports if before else {})
        case EpochReported() if event.trial_id in trials:
            trials[event.trial_id].reports.setdefault(int(event.metrics["epoch"]), event)
        case TrialEnded() if event.trial_id in trials:
            trials[event.trial_id].ended = event


def results(events: Iterable[Event], part: str) -> list[Row] | None:
    """How the trials of one run of Tune ended; None if that run has not."""
    found = list(events)
    ends = [event for event in found if isinstance(event, PartEnded) and event.part == part]
    if not ends:
        return None
    trials = read_trials(found)
    rows = (trials[trial_id].result() for trial_id in ends[-1].trials if trial_id in trials)
    return [row for row in rows if row is not None]
