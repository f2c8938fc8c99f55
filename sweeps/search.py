"""The search: one Optuna study, a regularizer and its weight per trial, early stopping by images seen."""

import math
import warnings
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from regularizers import REGULARIZERS
from sweeps.settings import Sweep

METRIC = "val/robust_accuracy"


@dataclass(frozen=True)
class Space:
    """Define-by-run search space: categorical `regularizer`, then `weight_NAME` log-uniform around its unit.

    Args:
        names: regularizers of the sweep.
        units: calibrated unit of each one that has a penalty.
        seed: of the sweep; the n-th trial of every regularizer gets seed + n, so all see the same data orders
            (trials that were lost with their process do not count).
    """

    names: tuple[str, ...]
    units: dict[str, float]
    seed: int

    def __call__(self, trial: optuna.Trial) -> dict[str, Any]:
        name = trial.suggest_categorical("regularizer", list(self.names))
        if name in self.units:
            low, high = REGULARIZERS[name].strengths()
            trial.suggest_float(f"weight_{name}", low * self.units[name], high * self.units[name], log=True)
        earlier = (other for other in trial.study.get_trials(deepcopy=False) if other.number < trial.number)
        counts = (other.params.get("regularizer") == name and other.state != TrialState.FAIL for other in earlier)
        return {"seed": self.seed + sum(counts)}


def weight_of(config: dict[str, Any]) -> float:
    """The absolute weight in a trial's configuration."""
    return float(config.get(f"weight_{config['regularizer']}", 0.0))


class DurableOptunaSearch(OptunaSearch):
    """OptunaSearch whose study outlives the process.

    Stock OptunaSearch trips over a study that knows more than its own snapshot, leaves a trial with a
    missing or non-finite result running for ever, and forgets trials that were asked after the snapshot.
    """

    @property
    def _study(self) -> optuna.Study:
        assert self._ot_study is not None
        return self._ot_study

    def on_trial_result(self, trial_id: str, result: dict) -> None:
        try:
            super().on_trial_result(trial_id, result)
        except UpdateFinishedTrialError:
            return

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        value = (result or {}).get(METRIC)
        if result and (result.get("failed") or not (isinstance(value, int | float) and math.isfinite(value))):
            result, error = None, True
        trial = self._ot_trials.get(trial_id)
        if trial is not None and self._study._storage.get_trial(trial._trial_id).state.is_finished():
            self._completed_trials.add(trial_id)
            return
        super().on_trial_complete(trial_id, result, error)

    def restore(self, checkpoint_path: str) -> None:
        super().restore(checkpoint_path)
        known = {trial.number for trial in self._ot_trials.values()}
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.number not in known:
                self._study.tell(trial.number, state=TrialState.FAIL)
                self._study.enqueue_trial(trial.params)  # else its regularizer would be one trial short


def make_search(sweep: Sweep, units: dict[str, float]) -> DurableOptunaSearch:
    """The searcher of a new sweep; its study lives in the sweep's folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # `group` is experimental by name only
        sampler = optuna.samplers.TPESampler(multivariate=True, group=True, constant_liar=True, seed=sweep.seed)
    return DurableOptunaSearch(
        Space(sweep.names, units, sweep.seed),
        metric=METRIC,
        mode="max",
        study_name=sweep.name,
        storage=JournalStorage(JournalFileBackend(str(sweep.folder / "study.journal"))),
        sampler=sampler,
        points_to_evaluate=_points(sweep, units),
    )


def _points(sweep: Sweep, units: dict[str, float]) -> list[dict[str, Any]]:
    """What Optuna is told to try: the regularizers in turn, so that each gets the same number of trials.

    Weights are Optuna's own, unless the sweep names strengths.
    """
    strengths = sweep.strengths or (None,) * sweep.trials_per_regularizer
    return [
        {"regularizer": name} | ({f"weight_{name}": strength * units[name]} if strength and name in units else {})
        for strength in strengths
        for name in sweep.names
    ]


class FairASHA(ASHAScheduler):
    """ASHA that never stops the baseline: everything else is measured against it."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict) -> str:
        if trial.config["regularizer"] == "none":
            return TrialScheduler.CONTINUE
        return super().on_trial_result(tune_controller, trial, result)


def make_scheduler(sweep: Sweep) -> TrialScheduler:
    """Early stopping by images seen, the same budget for every regularizer; or none."""
    if sweep.scheduler == "none":
        return FIFOScheduler()
    budget = sweep.trial.epochs * sweep.trial.images_per_epoch
    return FairASHA(
        time_attr="images_seen",
        metric=METRIC,
        mode="max",
        max_t=budget + 1,  # at max_t exactly, ASHA would stop trials that are just done
        grace_period=max(budget // 4, 1),
        reduction_factor=2,
    )
