"""Fit published weights to a model, whole or not at all, and hold back what does not belong to it.

`trainer.weight_copies` finds the parameters in the file, `trainer.last_layer` matches its classes with the data's.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trainer.errors import FieldError, UsageError
from trainer.last_layer import (
    class_rows,
    classes_in,
    head_misfit,
    head_remedy,
    imagenet_wnids,
    other_classes,
    taken,
    trial_settings,
)
from trainer.models import last_layers
from trainer.published import published
from trainer.timm_names import PRETRAINED
from trainer.weight_copies import (
    STATISTICS,
    WeightCopy,
    belongs_to,
    choose_copy,
    dictionaries,
    find_copies,
    layer_names,
)
from trainer.weights_file import read_content, weights_file

COUNTERS = "num_batches_tracked"  # absent before PyTorch 0.4; does not enter the computation of our batch norm
SHOWN = 3  # problems in a message


@dataclass(frozen=True)
class Loaded:
    """What was done with a checkpoint.

    Args:
        head: `own` (the file's last layer as it is), `rows` (those of the data's classes) or `new` (fresh weights).
        notes: sentences for the user, where there was a choice or something was left out.
    """

    head: str
    notes: tuple[str, ...]


def load_weights(
    model: nn.Module,
    checkpoint: str,
    *,
    name: str = "",
    classes: Sequence[str] = (),
    head: str = "own",
    ema: bool = False,
) -> Loaded:
    """Load published weights or a trial's checkpoint into a model.

    Args:
        model: model to load them into, in its own precision.
        checkpoint: file or folder of a trial, path or URL; or `pretrained`.
        name: name of the model, for `pretrained`.
        classes: names of the data's classes, in order.
        head: `own`: the last layer must fit, too, and be of the data's classes in their order where the file names its
            own; `rows`: or be of classes that are known by name (those the file names; ImageNet's 1,000 if the data's
            are WordNet ids), of which those of the data are taken; `new`: those, or the last layer stays as it is in
            the model.
        ema: whether to take the moving average that the file has beside the weights.

    Raises:
        UsageError: if a parameter or buffer is missing, of another shape or not finite, or there is a layer that
            the model does not have, or the file names other classes; the model is unchanged then.
    """
    content = published(name) if checkpoint == PRETRAINED else read_content(weights_file(checkpoint))
    return fit_weights(model, content, checkpoint, classes=classes, head=head, ema=ema)


def fit_weights(
    model: nn.Module,
    content: Any,
    checkpoint: str,
    *,
    classes: Sequence[str] = (),
    head: str = "own",
    ema: bool = False,
) -> Loaded:
    """As `load_weights`, from what its file holds."""
    own, layers = model.state_dict(), last_layers(model)
    copy, notes = _best_copy(model, content, checkpoint, layers, ema)
    problems = _problems(copy, own)
    body = [problem for name, problem in problems.items() if not belongs_to(layers, name)]
    if body:
        raise _misfit(checkpoint, body)
    state = dict(copy.tensors)
    count = len(state.get(f"{layers[0]}.weight", ())) if layers else 0
    names = classes_in(checkpoint, content, count)
    # A trial's checkpoint that names none is older than they are there, and in the order of its own data.
    known = names or (() if trial_settings(content) else imagenet_wnids())
    rows = class_rows(known, classes, count)
    remedy = head_remedy(head, names, rows)
    if rows is None and names and classes and head == "rows":
        raise other_classes(checkpoint, names, classes, remedy)
    if names and classes and head == "own" and not problems and list(names) != list(classes):
        raise other_classes(checkpoint, names, classes, remedy)
    if rows is not None and head != "own":
        mine = {name: value for name, value in state.items() if belongs_to(layers, name)}
        state |= {name: value[rows] for name, value in mine.items() if value.ndim and len(value) == count}
        problems = _problems(dataclasses.replace(copy, tensors=state), own)
        if rows != list(range(count)):
            notes.append(taken(checkpoint, count, rows))
    elif head == "new":
        if not layers:
            raise FieldError("new_head", True, "which layer of this model is its last is not known; leave it out")
        dropped = [name for name in (*state, *copy.inside) if belongs_to(layers, name)]
        if dropped:
            notes.append(f"the last layer of {checkpoint} is left out: {layer_names(dropped)}")
        state, problems = {name: value for name, value in state.items() if not belongs_to(layers, name)}, {}
    if problems:
        raise head_misfit(checkpoint, layers, state, own, list(problems.values()), remedy)
    _check_finite(state, checkpoint)
    model.load_state_dict(state, strict=False)
    kind = "own" if head == "own" else "rows" if rows is not None else "new" if head == "new" else "own"
    return Loaded(kind, tuple(notes))


def _best_copy(
    model: nn.Module, content: Any, checkpoint: str, layers: Sequence[str], ema: bool
) -> tuple[WeightCopy, list[str]]:
    """The copy of the weights to load, and notes for the user."""
    own, found = model.state_dict(), find_copies(model, content, layers)
    copies = [copy for copy in found if not STATISTICS.search(copy.words)]
    if found and not copies:
        raise _misfit(checkpoint, [f"it has no weights, only what an optimizer keeps ({found[0].place})"])
    if not copies:
        there = [name for _, tensors in dictionaries(content) for name in tensors]
        held = f"none of its names is there, such as {next(iter(own))}, but {', '.join(there[:SHOWN])}"
        raise _misfit(checkpoint, [held if there else "it holds no tensors under names"])
    copy, notes = choose_copy(copies, checkpoint, own, layers, ema)
    if odd := _unusable(copy.tensors):
        raise _misfit(checkpoint, odd)
    return copy, notes


def _check_finite(state: dict[str, Tensor], checkpoint: str) -> None:
    for name, value in state.items():
        if value.is_floating_point() and not bool(value.float().isfinite().all()):
            what = "NaN" if bool(value.float().isnan().any()) else "infinity"
            raise FieldError("checkpoint", checkpoint, f"{name} holds {what}; the training that wrote it had diverged")


def _unusable(tensors: dict[str, Tensor]) -> list[str]:
    """What has no plain values to load."""
    kinds = {
        name: "has no values (it is on the meta device)" if value.is_meta else f"is a tensor of {str(value.layout)[6:]}"
        for name, value in tensors.items()
        if value.is_meta or value.layout != torch.strided
    }
    return [f"{name} {kind}" for name, kind in kinds.items()]


def _problems(copy: WeightCopy, own: dict[str, Tensor]) -> dict[str, str]:
    """What is wrong, by name."""
    found = {name: f"has unknown {name}" for name in copy.inside}
    for name, value in own.items():
        given = copy.tensors.get(name)
        if given is None:
            if not name.endswith(COUNTERS):
                found[name] = f"lacks {name}"
        elif given.shape != value.shape:
            found[name] = f"{name} is {tuple(given.shape)}, the model's is {tuple(value.shape)}"
        elif value.is_floating_point() and not given.is_floating_point():
            found[name] = f"{name} is {str(given.dtype)[6:]}, the model's is {str(value.dtype)[6:]}"
    return found


def _misfit(checkpoint: str, problems: list[str]) -> UsageError:
    more = f" and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    return FieldError(
        "checkpoint", checkpoint, f"does not fit the model: {'; '.join(problems[:SHOWN])}{more}. Check `model`"
    )
