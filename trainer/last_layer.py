"""The last layer of published weights: which classes its outputs are of, and those of the data among them."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Any

from torch import Tensor

from trainer.config import Trial
from trainer.errors import FieldError, UsageError
from trainer.shards.find import few
from trainer.shards.meta import class_names

SHOWN = 3  # names in a message


def match_classes(names: Sequence[str], classes: Sequence[str], checkpoint: str) -> list[int]:
    """Which of a model's outputs stand for the data's classes, in their order.

    Args:
        names: classes of the model's outputs, in order.
        classes: classes of the data, in order.
        checkpoint: name of the checkpoint, for the message.

    Raises:
        UsageError: if the model does not have all of them; it names those that differ.
    """
    rows = class_rows(names, classes, len(names))
    if rows is None:
        raise other_classes(checkpoint, names, classes, head_remedy("rows", names, None))
    return rows


def taken(checkpoint: str, count: int, rows: Sequence[int]) -> str:
    """The line for the user where outputs are taken by the names of their classes."""
    if len(rows) == count:
        return f"{checkpoint} has the data's {count} classes in another order: its outputs are taken by their names"
    return f"of the {count} classes of its last layer those of the data are taken, by their names"


def class_rows(names: Sequence[str], classes: Sequence[str], count: int) -> list[int] | None:
    """Which rows of a last layer of so many are the data's classes; None where it has not all of them by name."""
    if len(names) != count or not classes:
        return None
    if list(names) == list(classes):  # even if a name occurs twice
        return list(range(count))
    often = Counter(names)
    rows = {name: row for row, name in enumerate(names) if often[name] == 1}
    return [rows[name] for name in classes] if rows.keys() >= set(classes) else None


def classes_in(checkpoint: str, content: Any, count: int) -> tuple[str, ...] | None:
    """The classes of the last layer in their order, where the file names them."""
    said = content.get("classes") if isinstance(content, dict) else None
    try:
        names = class_names(checkpoint, list(said) if isinstance(said, tuple) else said)
    except UsageError:  # nothing that names classes
        return None
    return tuple(names) if len(names) == count else None


def head_remedy(head: str, names: Sequence[str] | None, rows: Sequence[int] | None) -> str:
    """What to do about a last layer of other classes: `rows` are there if it has those of the data by name."""
    if head == "rows":
        return "evaluate it on data of its own classes, or finetune it on these first, by a sweep with `new_head`"
    if rows is None:
        return "`new_head` of a sweep puts a fresh one in its place"
    whose = "its" if names else "ImageNet's"
    return f"`new_head` of a sweep takes {whose} own rows of the data's classes, by their names"


def other_classes(checkpoint: str, names: Sequence[str], classes: Sequence[str], remedy: str) -> UsageError:
    """The error for a last layer of other classes than the data's."""
    new, gone = (
        [name for name in some if name not in set(others)] for some, others in ((classes, names), (names, classes))
    )
    if not new:
        differ = "in another order" if not gone else f"and others ({few(gone, SHOWN)}) in an order of its own"
        return FieldError("checkpoint", checkpoint, f"it has the data's classes {differ}; {remedy}")
    of_its_own = f" and has {few(gone, SHOWN)} instead" if gone else ""
    return FieldError(
        "checkpoint", checkpoint, f"its classes are not the data's: it lacks {few(new, SHOWN)}{of_its_own}; {remedy}"
    )


def head_misfit(
    checkpoint: str,
    layers: Sequence[str],
    state: dict[str, Tensor],
    own: dict[str, Tensor],
    problems: list[str],
    remedy: str,
) -> UsageError:
    """The error for a last layer of another size or kind."""
    given = state.get(f"{layers[0]}.weight") if layers else None
    wanted = own.get(f"{layers[0]}.weight") if layers else None
    if given is None:
        what = "it has no last layer"
    elif wanted is not None and given.shape[1:] == wanted.shape[1:] and len(given) != len(wanted):
        what = f"its last layer is of {len(given)} classes, the data have {len(wanted)}"
    else:
        what = "its last layer is another one"
    return FieldError(
        "checkpoint", checkpoint, f"does not fit the model: {what} ({'; '.join(problems[:SHOWN])}); {remedy}"
    )


def trial_settings(content: Any) -> dict[str, Any]:
    """Settings of `Trial` in a trial's checkpoint, empty for any other file."""
    trial = content.get("trial") if isinstance(content, dict) else None
    known = {field.name for field in dataclasses.fields(Trial)}
    return {name: value for name, value in trial.items() if name in known} if isinstance(trial, dict) else {}


@lru_cache
def imagenet_wnids() -> tuple[str, ...]:
    """WordNet ids of ImageNet's 1,000 classes in the order that published weights have them."""
    return tuple(files("trainer").joinpath("imagenet_wnids.txt").read_text().split())
