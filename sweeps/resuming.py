"""A sweep that goes on: with the settings it began with, of which a few may be changed."""

import dataclasses
from typing import Any

from sweeps.settings import CHANGEABLE, Sweep
from trainer.errors import FieldError
from trainer.locations import absolute, read_json

GROWN = ("extensions", "source")  # what a sweep itself adds to its settings


def as_kept(asked: Sweep, how: str) -> Sweep:
    """The sweep of this name as its folder has it, with what may be changed as it is asked for.

    Args:
        asked: the sweep as it began, loaded again or not, perhaps changed.
        how: `resume` or `extend`.

    Raises:
        UsageError: if there is no such sweep, or something else was changed.
    """
    kept = Sweep.load(asked.name, asked.storage)
    mine, its = _flat(asked), _flat(kept)
    changed = [
        name
        for name, value in mine.items()
        if value is not None and value != its[name] and name not in (*GROWN, *CHANGEABLE[how])
    ]
    if kept.source is not None and "checkpoint" in changed and mine["checkpoint"] == absolute(kept.source):
        changed.remove("checkpoint")  # that of the trials was made from it
    if changed:
        raise FieldError(
            changed[0],
            mine[changed[0]],
            "a sweep keeps its settings; only "
            f"{', '.join(f'`{name}`' for name in CHANGEABLE[how])} can be changed; leave the others as they were, or "
            "start another sweep",
        )
    return dataclasses.replace(kept, **{name: getattr(asked, name) for name in CHANGEABLE[how]})


def extended(sweep: Sweep, trials: int) -> Sweep:
    """The sweep with more trials per regularizer.

    Raises:
        UsageError: if it has not ended.
    """
    result = read_json(f"{sweep.folder}/result.json")
    if result is None or tuple(result["trials_per_regularizer"]) != sweep.parts:
        raise FieldError("extensions", trials, f"sweep {sweep.name} has not ended; `resume` continues it")
    return dataclasses.replace(sweep, extensions=(*sweep.extensions, trials))


def _flat(sweep: Sweep) -> dict[str, Any]:
    """All settings by name, as a sweep that has begun has them; None where it filled them in."""
    from trainer.published import without_network  # with PyTorch, which a command line does without

    values = dataclasses.asdict(sweep)
    values |= values.pop("trial") | values.pop("placement")
    values["cache"]["folder"] = absolute(values["cache"]["folder"])
    for name in ("data", "checkpoint"):
        values[name] = None if values[name] is None else absolute(values[name])
    return values | {"model": without_network(values["model"])}
