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


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Settings of one sweep, kept as settings.json in its folder.

    Args:
        name: of the sweep, its folder, its Optuna study and its MLflow parent run.
        storage: folder for everything the sweep writes.
        tracking_uri: of MLflow.
        trial: what every trial shares; each gets its own regularizer, weight and seed.
        regularizers: names to compare; the baseline `none` is always among them.
        trials_per_regularizer: equal for all, so that the comparison is fair.
        strengths: of those trials, in calibrated units, one for each; None lets Optuna search.
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
    strengths: tuple[float, ...] | None = None
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
        if self.scheduler not in SCHEDULERS:
            raise UsageError(f"--scheduler {self.scheduler!r} is unknown; choose from {', '.join(SCHEDULERS)}")
        if self.strengths is not None:
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
        for flag, value in (
            ("--trials-per-regularizer", self.trials_per_regularizer),
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
    def total_trials(self) -> int:
        """Trials of the whole sweep."""
        return len(self.names) * self.trials_per_regularizer

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
        return cls(**given)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file that is whole under its name even if the machine stops while writing."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w") as stream:
        json.dump(content, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)


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
