"""The search: one Optuna study, a regularizer and its weight per trial."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from regularizers import REGULARIZERS
from sweeps.events import recover
from sweeps.searcher import StudySearcher
from sweeps.settings import Sweep

METRIC = "val/robust_accuracy"
OBJECTIVES = {"robust": [METRIC], "both": ["val/accuracy", METRIC]}


@dataclass(frozen=True)
class Space:
    """Define-by-run search space: categorical `regularizer`, then `weight_NAME` log-uniform around its unit.

    Args:
        names: regularizers of the sweep.
        units: calibrated unit of each one that has a penalty.
        weight: the only one there is, None for the whole range.
    """

    names: tuple[str, ...]
    units: dict[str, float]
    weight: float | None = None

    def __call__(self, trial: optuna.Trial) -> dict[str, Any]:
        name = trial.suggest_categorical("regularizer", list(self.names))
        if name not in self.units:
            return {"regularizer": name}
        low, high = (strength * self.units[name] for strength in REGULARIZERS[name].strengths())
        weight = trial.suggest_float(f"weight_{name}", self.weight or low, self.weight or high, log=True)
        return {"regularizer": name, f"weight_{name}": weight}


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
    recover(*_journal(sweep))


def make_search(sweep: Sweep, units: dict[str, float], part: int = 0) -> StudySearcher:
    """The searcher of a new sweep, or of a new part of one; the study of all parts lives in the sweep's folder."""
    # Where the regularizer is given, one weight is left to propose. Groups would propose those of all others with it,
    # each in a pass over all trials.
    together = sweep.allocation == "adaptive"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # `group` is experimental by name only
        # A sampler of the same seed would propose the first part's random weights again.
        sampler = optuna.samplers.TPESampler(
            multivariate=together, group=together, constant_liar=True, seed=sweep.trial.seed + part
        )
    journal, metrics = _journal(sweep), OBJECTIVES[sweep.objectives]
    storage = JournalStorage(JournalFileBackend(str(journal[0])))
    study = optuna.create_study(
        storage=storage,
        sampler=sampler,
        pruner=optuna.pruners.NopPruner(),  # the scheduler stops trials
        study_name=sweep.name,
        directions=["maximize"] * len(metrics),
        load_if_exists=True,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study.set_metric_names(metrics)
    # What a process left that was killed before Tune had kept anything: nobody would end it.
    while study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        study.ask()
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
    for point in _points(sweep, units, part):
        study.enqueue_trial(point)
    space = Space(sweep.names, units, sweep.trial.weight or None)
    return StudySearcher(
        study, storage, space=space, seed=sweep.trial.seed, epochs=sweep.trial.epochs, metrics=metrics, journal=journal
    )


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


def tune_folder(part: int) -> str:
    """Name of the folder in which Tune keeps a part of the sweep."""
    return f"tune-{part}" if part else "tune"
