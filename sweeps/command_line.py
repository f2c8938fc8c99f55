"""The command line of a sweep: each field of Sweep, and of the Trial and the Placement in it, is a flag.

    sweep, asked = parse(["--regularizers", "l2,ssim", "--pgd-eps", "8/255"], "heatmap-sweeps sweep", "Compare …")

What is given overrides the settings of --config or --preset, and these the defaults. PyTorch, Ray and MLflow are not
imported here: --help and what is wrong with a flag are told at once.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import FlagCreatePairsOff, arg

from sweeps import presets
from sweeps.folder import read_yaml
from sweeps.settings import CHANGEABLE, Sweep
from trainer.command import flag, flags_of
from trainer.command import parse as parse_flags
from trainer.errors import FieldError, UsageError
from trainer.locations import absolute
from trainer.plain import from_plain

# Fields without a flag of their own: --regularizers and --extend say it, or the sweep itself does.
NO_FLAG = ("regularizer", "penalty_settings", "extensions", "source")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is to be done.

    Args:
        config: file with settings, such as the sweep.yaml in the folder of an earlier sweep; flags override it.
        preset: settings of the code the losses come from (docs/original.md); flags override it.
        resume: continue the sweep --name with its own settings.
        extend: run N trials more per regularizer of the sweep --name, which has ended.
        verbose: print what Ray and the workers say, too.
    """

    config: Annotated[str | None, arg(metavar="FILE")] = None
    preset: Literal["original"] | None = None
    resume: Annotated[bool, FlagCreatePairsOff] = False
    extend: Annotated[int | None, arg(metavar="N")] = None
    verbose: Annotated[bool, FlagCreatePairsOff, arg(aliases=("-v",))] = False


def parse(argv: Sequence[str] | None, prog: str, description: str) -> tuple[Sweep, Asked]:
    """The sweep that is asked for, and what is to be done with it; --help ends here.

    Args:
        argv: the arguments; None are those of the process.
        prog: name of the command.
        description: what the command does.

    Raises:
        UsageError: if flags contradict each other, or a setting cannot be.
    """
    unnamed = arg(name="")  # flags of a part are called as they are, not after it
    of_sweep = flags_of(Sweep, NO_FLAG, {"digits": presets.DIGITS})
    parts = [("asked", Annotated[Asked, unnamed]), ("sweep", Annotated[of_sweep, unnamed])]
    given = parse_flags(dataclasses.make_dataclass("Flags", parts), argv, prog=prog, description=description)
    asked, flags = given.asked, given.sweep
    if asked.resume or asked.extend is not None:
        return _going_on(asked, flags), asked
    if asked.preset and asked.config:
        raise FieldError("preset", asked.preset, "and `config` both have settings; give one of them")
    return _preset(flags) if asked.preset else _new(flags, asked.config), asked


def _new(flags: dict[str, Any], config: str | None) -> Sweep:
    """A sweep with these settings, on those of a file or on the defaults."""
    settings = _merged(_configured(config, flags) if config else {}, flags)
    trial = settings.setdefault("trial", {})
    if not isinstance(trial, dict):
        raise UsageError(f"{config}: trial holds {trial!r}; give its settings, indented")
    if trial.get("data") is None:
        if trial.get("checkpoint"):
            needs = "needs `data`: the embedded digits pretrain a checkpoint of their own"
            raise FieldError("checkpoint", trial["checkpoint"], needs)
        settings["trial"] = presets.DIGITS | trial
    elif not trial.get("model"):
        raise FieldError("data", trial["data"], "needs `model`: which architecture is to be finetuned?")
    return from_plain(Sweep, settings, config or "command line")


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
    if asked.resume and asked.extend is not None:
        raise FieldError("resume", True, "ends what was begun, and `extend` begins more: give one of them")
    if "name" not in flags:
        raise FieldError(goes_on, getattr(asked, goes_on), "needs `name`: which sweep shall go on?")
    changes = dict(_flat(flags))
    sweep = Sweep.load(changes.pop("name"), changes.pop("storage", None))
    now = dict(_flat({field.name: getattr(sweep, field.name) for field in dataclasses.fields(sweep)}))
    heeded = {name: value for name, value in changes.items() if name in CHANGEABLE[goes_on]}
    others = [name for name in changes if name not in heeded and now[name] not in (changes[name], _path(changes[name]))]
    others += [name for name in ("config", "preset") if getattr(asked, name)]
    if others:
        takes = ", ".join(map(flag, ("name", "storage", "verbose", *CHANGEABLE[goes_on])))
        raise UsageError(
            f"{', '.join(map(flag, others))}: with {flag(goes_on)} a sweep keeps the settings it began with; beside it "
            f"only {takes} are heeded; leave out the others, or begin another sweep"
        )
    return dataclasses.replace(sweep, **heeded)


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
