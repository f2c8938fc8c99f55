"""A sweep is a value: what all its trials share and how many there are."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import yaml

from sweeps.checks import check_files, check_ranges, check_sweep
from sweeps.environment import set_environment
from sweeps.folder import SETTINGS, is_driven, no_sweep, read_yaml, was_prepared
from sweeps.proposals import settings_of
from trainer.command import how_to_run
from trainer.config import Trial, regularizer_names
from trainer.errors import FieldError, UsageError
from trainer.locations import absolute, file_size, is_url, write_files
from trainer.placement import Placement
from trainer.plain import from_plain, set_types, to_plain

if TYPE_CHECKING:
    from sweeps.messages import Progress
    from sweeps.results import SweepResult
    from sweeps.status import Status

Scheduler = Literal["rule", "asha", "none"]
Sampler = Literal["dial", "tpe", "random", "grid"]
Allocation = Literal["equal", "adaptive"]
Objectives = Literal["robust", "both"]
# What may be changed when a sweep is resumed or extended.
CHANGEABLE = {"resume": ("max_accuracy_drop",), "extend": ("seeds", "finalists", "max_accuracy_drop", "max_concurrent")}
FIRST_NEW_SEED = 1_000_000  # behind every seed a search will ever reach


def usual_storage() -> str:
    """Where sweeps are kept if nothing else is said: SWEEPS_STORAGE, else ./runs."""
    return os.environ.get("SWEEPS_STORAGE") or "runs"


def _digits() -> Trial:
    from sweeps import presets  # which has sweeps, too

    return presets.digits()


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Settings of one sweep, which its folder keeps as sweep.yaml; all have defaults, those of the embedded digits.

    Args:
        name: name of the sweep, its folder, its Optuna study and its MLflow run; the date and time by default.
        storage: folder or URL (s3, gs) that all nodes can write to, for settings, checkpoints and results; that of
            SWEEPS_STORAGE, else ./runs, by default.
        tracking_uri: address of MLflow; None is that of MLFLOW_TRACKING_URI, else an SQLite file in the storage.
        trial: settings that all trials share; each trial gets its own regularizer, weight and seed.
        regularizers: names of the regularizers to compare; the baseline `none` is always added.
        trials_per_regularizer: number of weights tried for each regularizer, one by default, or as many as `strengths`
            has; the average, if allocation is `adaptive`.
        extensions: number of further trials per regularizer, one entry for each time the sweep was extended.
        sampler: search for the strength that `max_accuracy_drop` would pick (`dial`), by Optuna's TPE, with that limit
            as a constraint (`tpe`), at random, or on a logarithmic grid (`grid`). Other tunable fields are searched
            beside it: by TPE with `dial` too, and at random with `grid`.
        allocation: give every regularizer the same number of trials (`equal`), or move trials to those that can still
            win (`adaptive`): by `dial` once each had two, by `tpe` once each had one.
        objectives: objective of the search: robust accuracy (`robust`), or accuracy and robust accuracy (`both`), for
            which `dial` is TPE.
        seeds: number of new seeds with which the best weights are trained again after the search; the pick is made of
            the means over them. 0 makes it of the search's own trials, one seed each.
        finalists: number of regularizers whose best weight is trained again, beside the baseline.
        strengths: weights to try, in calibrated units (0.1 to 1000), instead of a search.
        fixed: values of other tunable fields, which are then not searched, such as `psnr_hvs.error=0.5`.
        scheduler: stop trials early that the selection rule would surely refuse (`rule`), or those of low robust
            accuracy (`asha`), or train all to the end (`none`).
        new_head: replace the last layer, where the checkpoint has other classes than the data, or none.
        head_steps: number of steps to train that layer alone before the sweep.
        ema: start from the moving average that the checkpoint has beside its weights.
        source: checkpoint that start.pt was made of; None if trials start from the checkpoint itself.
        keep: checkpoints that stay whole once the sweep is over: `all`, that of the pick (`best`), or those of the best
            K trials (`top-K`); of the others only the weights stay.
        placement: resources of each trial.
        max_concurrent: largest number of trials at once; None is as many as fit.
        max_accuracy_drop: how much less accurate than the baseline the pick may be, as a fraction; 0.02 is two points.
        local_dir: folder of the machine that runs the sweep, if the storage is a URL: the search's journal, and metrics
            on their way to MLflow; None is ./runs.
    """

    name: str = field(default_factory=lambda: time.strftime("sweep-%Y%m%d-%H%M%S"))
    storage: str = field(default_factory=usual_storage)
    tracking_uri: str | None = None
    trial: Trial = field(default_factory=_digits)
    regularizers: tuple[str, ...] = field(default_factory=lambda: tuple(regularizer_names()))
    trials_per_regularizer: int | None = None
    extensions: tuple[int, ...] = ()
    sampler: Sampler = "dial"
    allocation: Allocation = "equal"
    objectives: Objectives = "robust"
    seeds: int = 3
    finalists: int = 3
    strengths: tuple[float, ...] | None = None
    fixed: Mapping[str, float] = field(default_factory=dict)
    scheduler: Scheduler = "rule"
    new_head: bool = False
    head_steps: int = 200
    ema: bool = False
    source: str | None = None
    keep: str = field(default="best", metadata={"metavar": "{all,best,top-K}"})
    placement: Placement = Placement()
    max_concurrent: int | None = None
    max_accuracy_drop: float = 0.02
    local_dir: str | None = None

    def __post_init__(self) -> None:
        set_types(self)
        object.__setattr__(self, "storage", absolute(self.storage).rstrip("/"))  # nodes and shells stand elsewhere
        if is_url(self.storage):
            object.__setattr__(self, "local_dir", absolute(self.local_dir or "runs"))
        check_sweep(self)

    def run(self, progress: Progress | None = None, verbose: bool = False) -> SweepResult:
        """Run the sweep: on the running Ray cluster, or on this machine.

        Args:
            progress: callback for the messages of `sweeps.messages`; None only logs.
            verbose: whether what Ray and the workers say reaches the terminal.

        Raises:
            UsageError: if it cannot work, or there is a sweep of that name already.
            KeyboardInterrupt: if it was interrupted; what is done is kept, and `resume` continues it.
        """
        self.check_start()
        set_environment()  # before Ray is imported
        from sweeps.run import run_new

        return run_new(self, progress, verbose)

    def resume(self, progress: Progress | None = None, verbose: bool = False) -> SweepResult:
        """Continue the sweep of this name where it was interrupted; one that has ended chooses its pick again.

        Args:
            progress: callback, as in `run`.
            verbose: whether to print more, as in `run`.

        Raises:
            UsageError: if its search has not begun, or other settings than `max_accuracy_drop` were changed.
        """
        set_environment()
        from sweeps.run import run_again

        return run_again(self, progress, verbose)

    def extend(self, trials: int, progress: Progress | None = None, verbose: bool = False) -> SweepResult:
        """Run more trials of the sweep of this name, which has ended.

        Args:
            trials: number of further trials of each regularizer.
            progress: callback, as in `run`.
            verbose: whether to print more, as in `run`.

        Raises:
            UsageError: if it has not ended, or other settings than `seeds`, `finalists`, `max_accuracy_drop` and
                `max_concurrent` were changed.
        """
        set_environment()
        from sweeps.run import run_more

        return run_more(self, trials, progress, verbose)

    def result(self) -> SweepResult:
        """How the sweep of this name ended.

        Raises:
            UsageError: if it has not.
        """
        from sweeps.results import SweepResult

        return SweepResult.load(self.name, self.storage)

    def status(self) -> Status:
        """How far the sweep of this name is.

        Raises:
            UsageError: if no trial has begun, or it was driven from another machine.
        """
        from sweeps.status import read_status

        return read_status(self.storage, self.name)

    def check_start(self) -> None:
        """Refuse a taken name, files that are not there and values outside their ranges, for which PyTorch is imported.

        Raises:
            FieldError: naming the field.
        """
        check_files(self.trial)
        if file_size(f"{self.folder}/{SETTINGS}") is not None:
            remedy = f"{self.storage} has a sweep of that name; choose another name, or continue that one by `resume`"
            raise FieldError("name", self.name, remedy)
        if self.strengths is not None or self.fixed:
            check_ranges(self)

    @property
    def new_seeds(self) -> range:
        """Seeds of the repetitions of finalists."""
        return range(first := self.trial.seed + FIRST_NEW_SEED, first + self.seeds)

    @property
    def mlflow(self) -> str:
        """Address of MLflow: `tracking_uri`, else that of MLFLOW_TRACKING_URI, else an SQLite file in the storage.

        A sweep that has started has the address in its settings, so it and `flush` keep to that; `flush --tracking-uri`
        sends elsewhere.
        """
        usual = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.local_storage}/mlflow.db"
        return usual if self.tracking_uri is None else self.tracking_uri

    @property
    def folder(self) -> str:
        """The sweep's own folder in the storage, a path or URL."""
        return f"{self.storage}/{self.name}"

    @property
    def local_storage(self) -> Path:
        """What only the machine that drives the sweep needs; the storage itself, unless that is a URL."""
        return Path(self.local_dir or self.storage)

    @property
    def local_folder(self) -> Path:
        """The sweep's own folder on that machine."""
        return self.local_storage / self.name

    @property
    def trials_folder(self) -> str:
        """Where each trial has a folder with its checkpoints."""
        return f"{self.folder}/trials"

    @property
    def names(self) -> tuple[str, ...]:
        """The baseline first, then the others in the order given."""
        return ("none", *(name for name in self.regularizers if name != "none"))

    @property
    def parts(self) -> tuple[int, ...]:
        """Trials per regularizer of the sweep as it began and of each extension."""
        return (self.trials_per_regularizer or len(self.strengths or (1,)), *self.extensions)

    @property
    def total_trials(self) -> int:
        """Trials of the search, all parts together."""
        return len(self.names) * sum(self.parts)

    @property
    def most_repetitions(self) -> int:
        """Trials of the final round, if every finalist turns out too inaccurate and another follows it."""
        penalties = len(self.names) - 1
        weights = min(2 * min(self.finalists, penalties), penalties * sum(self.parts))
        return self.seeds * (1 + weights) if weights else 0

    def fixed_of(self, name: str) -> dict[str, float]:
        """What `fixed` says of one regularizer, by field."""
        from regularizers import REGULARIZERS

        ranges = REGULARIZERS[name].settings()
        own = settings_of({"regularizer": name} | dict(self.fixed))
        return {setting: int(value) if ranges[setting].whole else value for setting, value in own.items()}

    def save(self) -> None:
        """Write sweep.yaml, whole or not at all."""
        content = yaml.safe_dump(to_plain(self), sort_keys=False, default_flow_style=None, allow_unicode=True)
        write_files(self.folder, {SETTINGS: content})

    def command(self, command: str, *arguments: str) -> str:
        """The command line that runs a command of the project on this sweep, from any folder and shell.

        Args:
            command: name of the command, such as `resume-best`.
            arguments: arguments of that command, beside the sweep's name and storage.
        """
        return how_to_run(command, "--name", self.name, "--storage", self.storage, *arguments)

    @classmethod
    def load(cls, name: str, storage: str | os.PathLike[str] | None = None) -> Sweep:
        """Read the settings of an earlier sweep.

        Args:
            name: name of the sweep.
            storage: folder or URL with the sweep; None is that of SWEEPS_STORAGE, else ./runs.

        Raises:
            UsageError: if there is none of that name, and the names there are listed; or if its search has not begun.
        """
        storage = absolute(usual_storage() if storage is None else storage).rstrip("/")
        folder = f"{storage}/{name}"
        if file_size(f"{folder}/{SETTINGS}") is not None:
            sweep = cls.read(f"{folder}/{SETTINGS}")
            if absolute(folder) != absolute(sweep.folder):  # its settings, results and MLflow have paths of the other
                raise UsageError(
                    f"{folder} is a copy of the sweep in {sweep.folder}, or was moved from there; move it back, or "
                    "make a symbolic link from there to here"
                )
            return sweep
        if file_size(f"{folder}/settings.json") is not None:
            raise UsageError(f"sweep {name!r} is of an earlier version, which kept settings.json; start another sweep")
        if was_prepared(folder):
            state = {
                True: "is still being prepared; wait until its search begins",
                False: "ended before its search began; give its command again",
                None: "ended before its search began, or is still being prepared; if it ended, give its command again",
            }
            raise UsageError(f"sweep {name!r} {state[is_driven(Path(folder))]}")
        raise no_sweep(name, storage)

    @classmethod
    def read(cls, location: str) -> Sweep:
        """Read the settings of a sweep from a file like sweep.yaml; what it leaves out has its default.

        Raises:
            UsageError: if there is no such file, or it holds something else.
        """
        return from_plain(cls, read_yaml(location), location)
