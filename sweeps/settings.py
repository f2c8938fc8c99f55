"""A sweep is a value: what all its trials share and how many there are."""

import dataclasses
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regularizers import REGULARIZERS
from trainer.cache import ShardCache
from trainer.config import Trial, UsageError
from trainer.ray_trial import Placement

SCHEDULERS = ("asha", "none")
ALLOCATIONS = ("equal", "adaptive")
OBJECTIVES = ("robust", "both")


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Settings of one sweep, kept as settings.json in its folder.

    Args:
        name: of the sweep, its folder, its Optuna study and its MLflow parent run.
        storage: folder for everything the sweep writes.
        tracking_uri: of MLflow.
        trial: what every trial shares; each gets its own regularizer, weight and seed.
        regularizers: names to compare; the baseline `none` is always among them.
        trials_per_regularizer: equal for all, so that the comparison is fair; on average, with `adaptive`.
        extensions: as many trials more per regularizer, one number for each time the sweep was extended.
        allocation: `equal` gives every regularizer the same number of trials, `adaptive` lets Optuna choose the
            regularizer once each had a trial.
        objectives: what Optuna searches for: `robust` accuracy, or `both` accuracies at once.
        seeds: how many times the best weight of each regularizer is trained again after the search; 0 is never.
        strengths: of those trials, in calibrated units, one for each; None lets Optuna search.
        weight: the absolute one of every penalty, instead of a search; None lets Optuna search.
        scheduler: `asha` stops weak trials early, `none` trains all to the end.
        placement: of each trial's workers.
        max_concurrent: trials at a time; None is as many as fit.
        max_accuracy_drop: how far below the baseline's accuracy (fraction of 1) the pick may lie.
        seed: of Optuna's sampler and of the trials.
    """

    name: str
    storage: str
    tracking_uri: str
    trial: Trial
    regularizers: tuple[str, ...]
    trials_per_regularizer: int = 1
    extensions: tuple[int, ...] = ()
    allocation: str = "equal"
    objectives: str = "robust"
    seeds: int = 0
    strengths: tuple[float, ...] | None = None
    weight: float | None = None
    scheduler: str = "asha"
    placement: Placement = Placement()
    max_concurrent: int | None = None
    max_accuracy_drop: float = 0.02
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = [name for name in self.regularizers if name not in REGULARIZERS]
        if unknown:
            known = ", ".join(sorted(REGULARIZERS))
            raise UsageError(f"--regularizers: unknown {', '.join(map(repr, unknown))}; choose from {known}")
        if len(set(self.regularizers)) < len(self.regularizers):
            raise UsageError(f"--regularizers: a name stands twice in {','.join(self.regularizers)}")
        if not self.name or any(sign in self.name for sign in "/\\\0") or self.name.startswith("."):
            raise UsageError(f"--name {self.name!r}: give a plain name without slashes")
        for option, asked, choices in (
            ("scheduler", self.scheduler, SCHEDULERS),
            ("allocation", self.allocation, ALLOCATIONS),
            ("objectives", self.objectives, OBJECTIVES),
        ):
            if asked not in choices:
                raise UsageError(f"--{option} {asked!r} is unknown; choose from {', '.join(choices)}")
        if self.seeds < 0 or self.seeds == 1:
            raise UsageError(f"--seeds {self.seeds}: give at least 2, one alone has no interval; or 0 for none")
        if self.strengths is not None:
            if self.allocation == "adaptive":
                raise UsageError("--strengths leaves Optuna nothing to choose; leave out --allocation adaptive")
            if len(self.strengths) != self.trials_per_regularizer:
                raise UsageError(
                    f"--strengths gives {len(self.strengths)}, --trials-per-regularizer is "
                    f"{self.trials_per_regularizer}; leave the latter out"
                )
            ranges = [REGULARIZERS[name].strengths() for name in self.regularizers if name != "none"]
            low, high = max((low for low, _ in ranges), default=0), min((high for _, high in ranges), default=math.inf)
            wrong = [f"{strength:g}" for strength in self.strengths if not low <= strength <= high]
            if wrong:
                raise UsageError(f"--strengths {','.join(wrong)}: give numbers from {low:g} to {high:g}")
        if self.weight is not None:
            if self.strengths is not None or self.allocation == "adaptive":
                raise UsageError("--weight leaves nothing to choose; leave out --strengths and --allocation adaptive")
            if not 0 < self.weight < math.inf:
                raise UsageError(f"--weight {self.weight:g}: give a finite number above 0")
        for flag, value in (
            ("--trials-per-regularizer", self.trials_per_regularizer),
            *(("--extend", number) for number in self.extensions),
            ("--workers-per-trial", self.placement.workers),
            ("--max-concurrent", self.max_concurrent if self.max_concurrent is not None else 1),
        ):
            if value < 1:
                raise UsageError(f"{flag} {value}: give a whole number of at least 1")
        if self.placement.gpus_per_worker < 0:
            raise UsageError(f"--gpus-per-worker {self.placement.gpus_per_worker}: give 0 or more")
        self.trial.steps_per_epoch(self.placement.workers)

    @property
    def folder(self) -> Path:
        """The sweep's own folder."""
        return Path(self.storage) / self.name

    @property
    def names(self) -> tuple[str, ...]:
        """The baseline first, then the others in the order given."""
        return ("none", *(name for name in self.regularizers if name != "none"))

    @property
    def parts(self) -> tuple[int, ...]:
        """Trials per regularizer of the sweep as it began and of each extension."""
        return (self.trials_per_regularizer, *self.extensions)

    @property
    def total_trials(self) -> int:
        """Trials of the search, all parts together."""
        return len(self.names) * sum(self.parts)

    def save(self) -> None:
        """Write settings.json, whole or not at all."""
        write_json(self.folder / "settings.json", dataclasses.asdict(self))

    @classmethod
    def load(cls, storage: str, name: str) -> "Sweep":
        """Read the settings of an earlier sweep.

        Raises:
            UsageError: if there is none of that name; the names there are listed.
        """
        path = Path(storage) / name / "settings.json"
        if not path.exists():
            known = sorted(p.parent.name for p in Path(storage).glob("*/settings.json"))
            raise UsageError(f"no sweep {name!r} under {storage}; there is {', '.join(known) or 'none'}")
        given: dict[str, Any] = json.loads(path.read_text())
        given["trial"] = Trial(**given["trial"])
        cache = ShardCache(**given["placement"].pop("cache"))
        given["placement"] = Placement(**given["placement"], cache=cache)
        given["regularizers"] = tuple(given["regularizers"])
        given["strengths"] = tuple(given["strengths"]) if given.get("strengths") else None
        given["extensions"] = tuple(given.get("extensions", ()))
        return cls(**given)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file that is whole under its name even if the machine stops while writing."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w") as stream:
        json.dump(content, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)


def extended(sweep: Sweep, trials: int, seeds: int | None = None) -> Sweep:
    """The sweep with more trials per regularizer and, where given, another number of seeds.

    Raises:
        UsageError: if it has not ended.
    """
    path = sweep.folder / "result.json"
    if not path.exists() or tuple(json.loads(path.read_text())["trials_per_regularizer"]) != sweep.parts:
        raise UsageError(f"--extend: sweep {sweep.name} has not ended; --name {sweep.name} --resume continues it")
    seeds = sweep.seeds if seeds is None else seeds
    return dataclasses.replace(sweep, extensions=(*sweep.extensions, trials), seeds=seeds)


def create_folder(sweep: Sweep) -> None:
    """Make the sweep's folder.

    Raises:
        UsageError: if the name is taken or the storage cannot be written.
    """
    if (sweep.folder / "settings.json").exists():
        raise UsageError(
            f"--name {sweep.name}: a sweep of that name is already under {sweep.storage}; "
            "add --resume to continue it, or choose another name"
        )
    try:
        sweep.folder.mkdir(parents=True, exist_ok=True)
        probe = sweep.folder / ".writable"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise UsageError(f"--storage {sweep.storage}: cannot be written ({error.strerror})") from None
