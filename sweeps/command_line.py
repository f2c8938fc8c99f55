"""The command line of a sweep: each field of Sweep, and of the Trial and the Placement in it, is a flag.

    sweep, asked = parse(["--regularizers", "l2,ssim", "--pgd-eps", "8/255"], "heatmap-sweeps sweep", "Compare …")

What is given overrides the settings of --config or --preset, and these the defaults. PyTorch, Ray and MLflow are not
imported here: --help and what is wrong with a flag are told at once.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sweeps import presets
from sweeps.folder import read_yaml
from sweeps.resuming import extended
from sweeps.settings import CHANGEABLE, Sweep
from trainer.command import flag, given
from trainer.errors import FieldError, UsageError
from trainer.locations import absolute
from trainer.plain import from_plain

# Fields without a flag of their own: --regularizers and --extend set them, or the sweep itself.
NO_FLAG = ("regularizer", "penalty_settings", "extensions", "source")


@dataclass(frozen=True, kw_only=True)
class OfSweep:
    """The flags of every command about one sweep.

    Args:
        name: name of the sweep.
        storage: folder or URL of the sweep; by default that of SWEEPS_STORAGE, else ./runs.
    """

    name: str
    storage: str | None = None


@dataclass(frozen=True, kw_only=True)
class TrainOn(OfSweep):
    """What `resume-best` is to train.

    Args:
        trial: number of a trial to train instead of the pick, such as 7, or the beginning of its id.
        epochs: number of further epochs.
        verbose: also print what Ray and the workers print.
    """

    trial: str | None = None
    epochs: int = 2
    verbose: bool = field(default=False, metadata={"aliases": ("-v",)})

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise FieldError("epochs", self.epochs, "give a whole number of at least 1")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is to be done.

    Args:
        config: file with settings, such as the sweep.yaml in the folder of an earlier sweep; flags override it.
        preset: settings of the code the losses come from (docs/original.md); flags override it.
        resume: continue the sweep --name with its own settings.
        extend: run N trials more per regularizer of the sweep --name, which has ended; also after `strengths` their
            weights are searched.
        verbose: also print what Ray and the workers print.
    """

    config: str | None = field(default=None, metadata={"metavar": "FILE"})
    preset: Literal["original"] | None = None
    resume: bool = False
    extend: int | None = None
    verbose: bool = field(default=False, metadata={"aliases": ("-v",)})

    @property
    def new(self) -> bool:
        """Whether a sweep starts that has not yet."""
        return not self.resume and self.extend is None


@dataclass(frozen=True)
class _Flags:
    """The whole command line.

    Args:
        asked: what is to be done.
        sweep: settings of the sweep.
    """

    asked: Asked = field(metadata={"name": ""})
    sweep: Sweep = field(metadata={"name": ""})


def parse(argv: Sequence[str] | None, prog: str, description: str) -> tuple[Sweep, Asked]:
    """The sweep that is asked for, and what is to be done with it; --help ends here.

    Args:
        argv: the arguments; None are those of the process.
        prog: name of the command.
        description: what the command does.

    Raises:
        UsageError: if flags contradict each other, or a setting cannot be.
    """
    found = given(
        _Flags, argv, prog=prog, description=description, skip=NO_FLAG, also={"digits": presets.DIGITS}
    )  # fmt: skip
    asked, flags = Asked(**found.get("asked", {})), found.get("sweep", {})
    if not asked.new:
        return _going_on(asked, flags), asked
    if asked.preset and asked.config:
        raise FieldError("preset", asked.preset, "and `config` both have settings; give one of them")
    return _preset(flags) if asked.preset else _new(flags, asked.config), asked


def _new(flags: dict[str, Any], config: str | None) -> Sweep:
    """A sweep with these settings, on those of a file or on the defaults."""
    settings = _merged(_configured(config, flags) if config else {}, flags)
    trial = settings.setdefault("trial", {})
    if not isinstance(trial, dict):
        raise UsageError(f"{config}: trial: give its settings, indented")
    if trial.get("data") is None:
        if trial.get("checkpoint"):
            needs = "needs `data`: the embedded digits pretrain a checkpoint of their own"
            raise FieldError("checkpoint", trial["checkpoint"], needs)
        settings["trial"] = presets.DIGITS | trial
    elif not trial.get("model"):
        raise FieldError("data", trial["data"], "needs `model`: which architecture is to be finetuned?")
    return from_plain(Sweep, settings, config or "command line", dict(_flat(flags)))


def _configured(config: str, flags: dict[str, Any]) -> dict[str, Any]:
    """The settings of a file, but for what belongs to the sweep that wrote it, or to another model."""
    settings = read_yaml(config)
    if settings.get("name") == Path(absolute(config)).parent.name:
        del settings["name"]
    for name in ("source", "extensions"):
        settings.pop(name, None)
    trial, model = settings.get("trial"), flags.get("trial", {}).get("model")
    if isinstance(trial, dict) and model not in (None, trial.get("model")):
        for name in ("mean", "std", "image_size"):  # of the other model
            trial.pop(name, None)
    return settings


def _preset(flags: dict[str, Any]) -> Sweep:
    """The original's settings, with those given."""
    trial, placement = dict(flags.pop("trial", {})), dict(flags.pop("placement", {}))
    if "strengths" in flags:
        trial.setdefault("weight", 0.0)
    sweep = presets.original(placement.get("workers", 1), **trial)
    cache = dataclasses.replace(sweep.placement.cache, **placement.pop("cache", {}))
    placed = dataclasses.replace(sweep.placement, **placement, cache=cache)
    return dataclasses.replace(sweep, **flags, placement=placed)


def _going_on(asked: Asked, flags: dict[str, Any]) -> Sweep:
    """An earlier sweep that is to be resumed or extended."""
    goes_on = "resume" if asked.resume else "extend"
    if asked.extend is not None and asked.extend < 1:
        raise FieldError("extend", asked.extend, "give a whole number of at least 1")
    if asked.resume and asked.extend is not None:
        raise FieldError("resume", True, "completes the trials of a sweep, and `extend` adds trials: give one of them")
    if "name" not in flags:
        raise FieldError(goes_on, getattr(asked, goes_on), "needs `name`, the name of the sweep")
    changes = dict(_flat(flags))
    sweep = Sweep.load(changes.pop("name"), changes.pop("storage", None))
    now = dict(_flat({field.name: getattr(sweep, field.name) for field in dataclasses.fields(sweep)}))
    allowed = {name: value for name, value in changes.items() if name in CHANGEABLE[goes_on]}
    others = [
        name for name in changes if name not in allowed and now[name] not in (changes[name], _path(changes[name]))
    ]
    others += [name for name in ("config", "preset") if getattr(asked, name)]
    if others:
        takes = ", ".join(map(flag, ("name", "storage", "verbose", *CHANGEABLE[goes_on])))
        raise UsageError(
            f"{', '.join(map(flag, others))}: with {flag(goes_on)} a sweep keeps its settings, and only {takes} can be "
            "given; leave out the others, or start another sweep"
        )
    sweep = dataclasses.replace(sweep, **allowed)
    if asked.extend is not None:
        extended(sweep, asked.extend)  # refuses one that has not ended
    return sweep


def _path(value: Any) -> Any:
    return absolute(value) if isinstance(value, str) else value


def _flat(settings: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """All fields and their values, those of the dataclasses within too."""
    for name, value in settings.items():
        if dataclasses.is_dataclass(value):
            yield from _flat({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
        elif isinstance(value, dict) and name in ("trial", "placement", "cache"):
            yield from _flat(value)
        else:
            yield name, value


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Two nested dicts as one, the second before the first."""
    nested = [name for name, value in above.items() if isinstance(value, dict) and name in below]
    both = {n: _merged(below[n], above[n]) if isinstance(below[n], dict) else below[n] for n in nested}
    return below | above | both
