"""Early stopping by images seen, the same budget for every regularizer; or none."""

from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from sweeps.events import EpochReported, EventLog, open_log
from sweeps.search import METRIC
from sweeps.settings import Sweep
from sweeps.trials import read_trials


class FairASHA(ASHAScheduler):
    """ASHA that never stops the baseline, against which everything else is measured, and outlives the process.

    Tune does not keep a scheduler's state over a restart. What this one knows follows from the epochs in the event log:
    before its first decision it goes through them, those of the sweep's earlier parts included.

    Args:
        log: event log of the sweep.
        rest: further arguments of ASHAScheduler.
    """

    def __init__(self, log: EventLog, **rest: Any) -> None:
        super().__init__(**rest)
        self.log, self._replayed = log, False

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict) -> str:
        if not self._replayed:
            self._replayed = True
            self._replay()
        if trial.config["regularizer"] == "none":
            return TrialScheduler.CONTINUE
        return super().on_trial_result(tune_controller, trial, result)

    def _replay(self) -> None:
        events = list(self.log)
        trials = read_trials(events)
        for event in events:
            if not isinstance(event, EpochReported) or event.trial_id not in trials:
                continue
            started = trials[event.trial_id].started
            if started.repeats or started.resumed_from or started.regularizer == "none":
                continue
            trial: Any = SimpleNamespace(trial_id=event.trial_id)
            super().on_trial_add(None, trial)  # type: ignore[arg-type]  # which it does not look at
            super().on_trial_result(None, trial, event.metrics)  # type: ignore[arg-type]


def make_scheduler(sweep: Sweep) -> TrialScheduler:
    """The scheduler that the sweep asks for."""
    if sweep.scheduler == "none":
        return FIFOScheduler()
    budget = sweep.trial.epochs * sweep.trial.epoch_images
    return FairASHA(
        open_log(sweep),
        time_attr="images_seen",
        metric=METRIC,
        mode="max",
        max_t=budget + 1,  # at max_t exactly, ASHA would stop trials that are just done
        grace_period=max(budget // 4, 1),
        reduction_factor=2,
    )
