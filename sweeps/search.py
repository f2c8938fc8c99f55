"""The search: one Optuna study, a regularizer and its weight per trial, early stopping by images seen."""

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from regularizers import REGULARIZERS
from sweeps.settings import Sweep, write_json
from trainer.locations import file_size, is_url, open_file, read_json, whole_file

METRIC = "val/robust_accuracy"
RUNGS = "rungs.json"
OBJECTIVES = {"robust": [METRIC], "both": ["val/accuracy", METRIC]}


@dataclass(frozen=True)
class Space:
    """Define-by-run search space: categorical `regularizer`, then `weight_NAME` log-uniform around its unit.

    Args:
        names: regularizers of the sweep.
        units: calibrated unit of each one that has a penalty.
        seed: of the sweep; the n-th trial of every regularizer gets seed + n, so all see the same data orders
            (trials that were lost with their process do not count).
        weight: the only one there is, None for the whole range.
    """

    names: tuple[str, ...]
    units: dict[str, float]
    seed: int
    weight: float | None = None

    def __call__(self, trial: optuna.Trial) -> dict[str, Any]:
        name = trial.suggest_categorical("regularizer", list(self.names))
        if name in self.units:
            low, high = (strength * self.units[name] for strength in REGULARIZERS[name].strengths())
            trial.suggest_float(f"weight_{name}", self.weight or low, self.weight or high, log=True)
        earlier = (other for other in trial.study.get_trials(deepcopy=False) if other.number < trial.number)
        counts = (other.params.get("regularizer") == name and other.state != TrialState.FAIL for other in earlier)
        return {"seed": self.seed + sum(counts), "number": trial.number}


class DurableOptunaSearch(OptunaSearch):
    """OptunaSearch whose study outlives the process.

    Stock OptunaSearch trips over a study that knows more than its own snapshot, leaves a trial with a
    missing or non-finite result running for ever, forgets trials that were asked after the snapshot, and takes
    the last value of a trial that was stopped early for that of a whole one.

    Args:
        epochs: of a whole trial.
        metrics: to maximize, one or several.
        journal: path of the study, and where a copy is kept with each snapshot of this searcher.
        rest: of OptunaSearch.
    """

    def __init__(self, *, epochs: int, metrics: list[str], journal: tuple[Path, str], **rest: Any) -> None:
        single = len(metrics) == 1  # Optuna has no intermediate values for several
        metric, mode = (metrics[0], "max") if single else (metrics, ["max"] * len(metrics))
        storage = JournalStorage(JournalFileBackend(str(journal[0])))
        super().__init__(metric=metric, mode=mode, storage=storage, **rest)
        self.epochs, self.metrics, self.journal = epochs, metrics, journal

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
        values = [(result or {}).get(metric) for metric in self.metrics]
        measured = all(isinstance(value, int | float) and math.isfinite(value) for value in values)
        if result and (result.get("failed") or not measured):
            result, error = None, True
        trial = self._ot_trials.get(trial_id)
        if trial is not None and self._study._storage.get_trial(trial._trial_id).state.is_finished():
            self._completed_trials.add(trial_id)
            return
        if result and result.get("epoch", self.epochs) < self.epochs and not result.get("diverged"):
            self.on_trial_result(trial_id, result)  # where it stood
            result = None  # with neither result nor error Optuna has it as pruned: worse than every whole trial
        super().on_trial_complete(trial_id, result, error)

    def save(self, checkpoint_path: str) -> None:
        path, copy = self.journal
        if is_url(copy):  # first: the study may know more than the snapshot, not less
            with whole_file(copy) as stream:
                stream.write(path.read_bytes())
        super().save(checkpoint_path)

    def restore(self, checkpoint_path: str) -> None:
        super().restore(checkpoint_path)
        known = {trial.number for trial in self._ot_trials.values()}
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.number not in known:
                self._study.tell(trial.number, state=TrialState.FAIL)
                self._study.enqueue_trial(trial.params)  # else its regularizer would be one trial short


def _journal(sweep: Sweep) -> tuple[Path, str]:
    return sweep.local_folder / "study.journal", f"{sweep.folder}/study.journal"


def open_study(sweep: Sweep) -> optuna.Study:
    """The study of the sweep.

    Raises:
        KeyError: if there is none.
    """
    recover_journal(sweep)
    return optuna.load_study(study_name=sweep.name, storage=JournalStorage(JournalFileBackend(str(_journal(sweep)[0]))))


def recover_journal(sweep: Sweep) -> None:
    """Fetch the study's journal from the storage if this machine has none: the one that drove the sweep is gone."""
    path, copy = _journal(sweep)
    if (path.exists() and path.stat().st_size) or not is_url(copy) or file_size(copy) is None:
        return
    with open_file(copy) as source, whole_file(str(path)) as target:
        target.write(source.read())


def make_search(sweep: Sweep, units: dict[str, float], part: int = 0) -> DurableOptunaSearch:
    """The searcher of a new sweep, or of a new part of one; the study of all parts lives in the sweep's folder."""
    # Where the regularizer is given, one weight is left to propose. Groups would propose those of all others with it,
    # each in a pass over all trials.
    together = sweep.allocation == "adaptive"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # `group` is experimental by name only
        # A sampler of the same seed would propose the first part's random weights again.
        sampler = optuna.samplers.TPESampler(
            multivariate=together, group=together, constant_liar=True, seed=sweep.seed + part
        )
    search = DurableOptunaSearch(
        epochs=sweep.trial.epochs,
        metrics=OBJECTIVES[sweep.objectives],
        space=Space(sweep.names, units, sweep.seed, sweep.weight),
        study_name=sweep.name,
        journal=_journal(sweep),
        sampler=sampler,
    )
    study = search._study
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study.set_metric_names(OBJECTIVES[sweep.objectives])
    # What a process left that was killed before Tune had kept anything: nobody would end it.
    while study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        study.ask()
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
    for point in _points(sweep, units, part):
        study.enqueue_trial(point)
    return search


def _points(sweep: Sweep, units: dict[str, float], part: int) -> list[dict[str, Any]]:
    """What Optuna is told to try: the regularizers in turn, so that each gets the same number of trials.

    Weights are Optuna's own, unless the sweep names strengths. With adaptive allocation every regularizer has one
    trial, and the rest of the trials is Optuna's own too.
    """
    if sweep.allocation == "adaptive":
        return [] if part else [{"regularizer": name} for name in sweep.names]
    strengths = sweep.strengths if sweep.strengths and not part else (None,) * sweep.parts[part]
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


def make_scheduler(sweep: Sweep, part: int = 0) -> TrialScheduler:
    """Early stopping by images seen, the same budget for every regularizer; or none.

    A later part of a sweep goes on with the rungs of the parts before it.
    """
    if sweep.scheduler == "none":
        return FIFOScheduler()
    budget = sweep.trial.epochs * sweep.trial.images_per_epoch
    asha = FairASHA(
        time_attr="images_seen",
        metric=METRIC,
        mode="max",
        max_t=budget + 1,  # at max_t exactly, ASHA would stop trials that are just done
        grace_period=max(budget // 4, 1),
        reduction_factor=2,
    )
    if part:
        earlier = read_json(f"{sweep.folder}/{tune_folder(part - 1)}/{RUNGS}") or []
        for (milestone, recorded), (known, values) in zip(asha._brackets[0]._rungs, earlier, strict=False):
            if milestone == known:
                recorded.update(values)
    return asha


def keep_rungs(scheduler: TrialScheduler, folder: str) -> None:
    """Keep what ASHA knows of the trials of a Tune folder, all parts before included, for the next part."""
    if isinstance(scheduler, FairASHA):
        write_json(f"{folder}/{RUNGS}", scheduler._brackets[0]._rungs)


def tune_folder(part: int) -> str:
    """Name of the folder in which Tune keeps a part of the sweep."""
    return f"tune-{part}" if part else "tune"
