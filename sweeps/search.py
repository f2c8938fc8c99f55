"""The search: one Optuna study; per trial a regularizer, its weight and its other settings."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from regularizers import REGULARIZERS
from regularizers.base import Tunable
from sweeps.dial import FAIR
from sweeps.dial_sampler import MAX_DROP, DialSampler
from sweeps.events import recover
from sweeps.proposals import named
from sweeps.searcher import StudySearcher
from sweeps.settings import Sweep
from trainer.metrics import VAL_ACCURACY, VAL_ROBUST_ACCURACY

METRIC = VAL_ROBUST_ACCURACY
GOLDEN = 0.618
OBJECTIVES = {"robust": [METRIC], "both": [VAL_ACCURACY, METRIC]}


@dataclass(frozen=True)
class Space:
    """Define-by-run search space: `regularizer`, `weight_NAME` log-uniform around its unit, then `NAME.FIELD`.

    Args:
        names: regularizers of the sweep.
        units: calibrated unit of each one that has a penalty.
        weight: the only one there is, None for the whole range; with one the other fields have their defaults.
        fixed: values of fields that are not searched, by regularizer and field.
    """

    names: tuple[str, ...]
    units: dict[str, float]
    weight: float | None = None
    fixed: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def __call__(self, trial: optuna.Trial) -> dict[str, Any]:
        name = trial.suggest_categorical("regularizer", list(self.names))
        if name not in self.units:
            return {"regularizer": name}
        low, high = (strength * self.units[name] for strength in REGULARIZERS[name].strengths())
        weight = trial.suggest_float(f"weight_{name}", self.weight or low, self.weight or high, log=True)
        settings = {}
        for setting, found in REGULARIZERS[name].settings().items():
            value = self.fixed.get(name, {}).get(setting, found.default)
            if self.weight is None and setting not in self.fixed.get(name, {}):
                value = _suggest(trial, f"{name}.{setting}", found)
            if value != found.default:
                settings[setting] = value
        return {"regularizer": name, f"weight_{name}": weight} | named(name, settings)


def _suggest(trial: optuna.Trial, name: str, found: Tunable) -> float:
    if found.whole:
        return trial.suggest_int(name, int(found.low), int(found.high), log=found.log)
    return trial.suggest_float(name, found.low, found.high, log=found.log)


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
    journal, metrics = _journal(sweep), OBJECTIVES[sweep.objectives]
    storage = JournalStorage(JournalFileBackend(str(journal[0])))
    study = optuna.create_study(
        storage=storage,
        sampler=_sampler(sweep, units, sweep.trial.seed + part),  # of the first part's seed would propose its weights
        pruner=optuna.pruners.NopPruner(),  # the scheduler stops trials
        study_name=sweep.name,
        directions=["maximize"] * len(metrics),
        load_if_exists=True,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study.set_metric_names(metrics)
    study.set_user_attr(MAX_DROP, sweep.max_accuracy_drop)
    # What a process left that was killed before Tune had kept anything: nobody would end it.
    while study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        study.ask()
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
    for point in _points(sweep, units, part):
        study.enqueue_trial(point)
    fixed = {name: sweep.fixed_of(name) for name in sweep.names}
    space = Space(sweep.names, units, sweep.trial.weight or None, fixed)
    return StudySearcher(
        study,
        storage,
        space=space,
        seed=sweep.trial.seed,
        epochs=sweep.trial.epochs,
        metrics=metrics,
        journal=journal,
    )


def by_dial(sweep: Sweep) -> bool:
    """Whether the search is for the strengths that the rule would pick; two objectives are for more than that."""
    return sweep.sampler == "dial" and sweep.objectives == "robust"


def _sampler(sweep: Sweep, units: dict[str, float], seed: int) -> optuna.samplers.BaseSampler:
    """What proposes weights and settings that are not given."""
    if by_dial(sweep):
        ranges = {name: REGULARIZERS[name].strengths() for name in units}
        return DialSampler(ranges, units, seed)
    if sweep.sampler in ("random", "grid"):
        return optuna.samplers.RandomSampler(seed)
    # Where the regularizer is given, its weight and settings are left to propose. Groups would propose those of all
    # others with them, each in a pass over all trials.
    together = sweep.allocation == "adaptive"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # `group` is experimental by name only
        return optuna.samplers.TPESampler(multivariate=together, group=together, constant_liar=True, seed=seed)


def _points(sweep: Sweep, units: dict[str, float], part: int) -> list[dict[str, Any]]:
    """What the study is told to try: the regularizers in turn, so that each gets the same number of trials.

    Weights are the sampler's own, unless there are strengths for them; so are other settings. With adaptive allocation
    every regularizer has what is fair, and the rest of the trials is the sampler's own too.
    """
    count = sweep.parts[part]
    if sweep.allocation == "adaptive":
        count = 0 if part else min(count, FAIR if by_dial(sweep) else 1)
    points: list[dict[str, Any]] = [{"regularizer": name} for _ in range(count) for name in sweep.names]
    for number, point in enumerate(points):
        name = point["regularizer"]
        if name in units and (strength := _strength(sweep, name, part, number // len(sweep.names))):
            point[f"weight_{name}"] = strength * units[name]
    return points


def _strength(sweep: Sweep, name: str, part: int, number: int) -> float | None:
    """The strength that a regularizer is to have in one of its trials of a part, None where that is the sampler's."""
    if sweep.strengths and not part:
        return sweep.strengths[number]
    if sweep.sampler != "grid":
        return None
    low, high = REGULARIZERS[name].strengths()
    within = (0.5 + part * GOLDEN) % 1  # of one of as many equal stretches; another place in each part
    return float(low * (high / low) ** ((number + within) / sweep.parts[part]))


def tune_folder(part: int) -> str:
    """Name of the folder in which Tune keeps a part of the sweep."""
    return f"tune-{part}" if part else "tune"
