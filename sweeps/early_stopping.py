"""Early stopping of trials that the rule would refuse; or by images seen, the same budget for all; or none."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from statistics import fmean
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from sweeps.dial_sampler import MAX_DROP
from sweeps.events import EpochReported, Event, EventLog, SweepStarted, open_log
from sweeps.rule_stopping import Share, outdone, refused
from sweeps.search import METRIC
from sweeps.settings import Sweep
from sweeps.trials import read_trials
from trainer.metrics import VAL_ACCURACY, VAL_ATTACKED_EXAMPLES, VAL_EXAMPLES, VAL_ROBUST_ACCURACY


@dataclass(frozen=True)
class Seen:
    """What a trial measured after an epoch.

    Args:
        accuracy: its accuracy.
        robust: its robust accuracy.
    """

    accuracy: Share
    robust: Share

    @classmethod
    def of(cls, result: dict[str, Any]) -> "Seen":
        """From a result of Tune; one that says no numbers of images counts as of one."""
        return cls(
            Share(result[VAL_ACCURACY], int(result.get(VAL_EXAMPLES, 1))),
            Share(result[VAL_ROBUST_ACCURACY], int(result.get(VAL_ATTACKED_EXAMPLES, 1))),
        )


class RuleScheduler(FIFOScheduler):
    """Stops a trial once the rule would refuse it: its accuracy is too low, or one that finished is surely better.

    It is compared with the baselines after the same epoch. With the most robust trial of all regularizers only if one
    of its own has been admitted, so that of each there is a trial to rank. Baselines are never stopped. What it knows
    follows from the epochs in the event log, which it reads before its first decision, earlier parts and processes
    included: Tune does not keep a scheduler's state over a restart.

    Args:
        log: events of the sweep.
        epochs: number of epochs of a whole trial.
        max_accuracy_drop: how far below the baselines' mean accuracy the pick may lie, where the log does not say.
    """

    def __init__(self, log: Iterable[Event], epochs: int, max_accuracy_drop: float) -> None:
        super().__init__()
        self.log, self.epochs, self.max_accuracy_drop = log, epochs, max_accuracy_drop
        self._baselines: dict[int, dict[str, Seen]] = {}  # by epoch and trial
        self._finished: dict[str, tuple[str, Seen]] = {}  # by trial: its regularizer, and what it measured
        self._best: dict[str, Share] = {}  # robust accuracy of the best admitted trial of each regularizer
        self._read = False

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict) -> str:
        if not self._read:
            self._read = True
            for event in self.log:  # the last says how the sweep goes on
                if isinstance(event, SweepStarted) and MAX_DROP in event.params:
                    self.max_accuracy_drop = float(event.params[MAX_DROP])
            for trial_id, name, metrics in reports(self.log):
                self._take(trial_id, name, metrics)
        name = trial.config["regularizer"]
        if "epoch" not in result or result.get("diverged"):  # it ends by itself
            return TrialScheduler.CONTINUE
        self._take(trial.trial_id, name, result)
        wanted = name == "none" or result["epoch"] >= self.epochs or not self._hopeless(name, result)
        return TrialScheduler.CONTINUE if wanted else TrialScheduler.STOP

    def _take(self, trial_id: str, name: str, result: dict[str, Any]) -> None:
        """Remember a result that others are compared with."""
        epoch, seen = int(result["epoch"]), Seen.of(result)
        if name == "none":
            self._baselines.setdefault(epoch, {})[trial_id] = seen
            if epoch == self.epochs:  # which moves the limit
                self._best = {}
                for other, found in self._finished.values():
                    self._admit(other, found)
        elif epoch == self.epochs:
            self._finished[trial_id] = name, seen
            self._admit(name, seen)

    def _admit(self, name: str, seen: Seen) -> None:
        """Keep the best of the trials that finished and that the rule admits."""
        baseline = self._baseline(self.epochs)
        if baseline and seen.accuracy.value >= baseline.accuracy.value - self.max_accuracy_drop:
            self._best[name] = max(seen.robust, self._best.get(name, seen.robust), key=lambda share: share.value)

    def _baseline(self, epoch: int) -> Seen | None:
        """Mean of the baselines after an epoch; its images are those of one, as all are measured on the same."""
        found = list(self._baselines.get(epoch, {}).values())
        if not found:
            return None
        return Seen(
            Share(fmean(seen.accuracy.value for seen in found), found[0].accuracy.images),
            Share(fmean(seen.robust.value for seen in found), found[0].robust.images),
        )

    def _hopeless(self, name: str, result: dict[str, Any]) -> bool:
        seen, now, end = Seen.of(result), self._baseline(int(result["epoch"])), self._baseline(self.epochs)
        if now and refused(seen.accuracy, now.accuracy, self.max_accuracy_drop):
            return True
        if name not in self._best or end is None:
            return False
        return outdone(seen.robust, end.robust, max(self._best.values(), key=lambda share: share.value))


class FairASHA(ASHAScheduler):
    """ASHA that never stops the baseline, and outlives the process as `RuleScheduler` does.

    Args:
        log: event log of the sweep.
        rest: further arguments of ASHAScheduler.
    """

    def __init__(self, log: EventLog, **rest: Any) -> None:
        super().__init__(**rest)
        self.log, self._read = log, False

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict) -> str:
        if not self._read:
            self._read = True
            for trial_id, name, metrics in reports(self.log):
                if name != "none":
                    stub: Any = SimpleNamespace(trial_id=trial_id)
                    super().on_trial_add(None, stub)  # type: ignore[arg-type]  # which it does not look at
                    super().on_trial_result(None, stub, metrics)  # type: ignore[arg-type]
        if trial.config["regularizer"] == "none":
            return TrialScheduler.CONTINUE
        return super().on_trial_result(tune_controller, trial, result)


def reports(log: Iterable[Event]) -> Iterator[tuple[str, str, dict[str, float]]]:
    """Trial, regularizer and metrics of every epoch that a trial of the search reported."""
    events = list(log)
    trials = read_trials(events)
    for event in events:
        if isinstance(event, EpochReported) and event.trial_id in trials:
            started = trials[event.trial_id].started
            if not started.repeats and not started.resumed_from:
                yield event.trial_id, started.regularizer, event.metrics


def make_scheduler(sweep: Sweep) -> TrialScheduler:
    """The scheduler that the sweep asks for."""
    if sweep.scheduler == "none":
        return FIFOScheduler()
    if sweep.scheduler == "rule":
        return RuleScheduler(open_log(sweep), sweep.trial.epochs, sweep.max_accuracy_drop)
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
