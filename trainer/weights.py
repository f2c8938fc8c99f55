"""Fit published weights to a model: find its parameters in whatever wraps them, and hold back what does not belong.

The rule is general: of all dictionaries in the file, nested as they may be, and all prefixes of their names, those are
taken under which the model's own names are found with their shapes.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor, nn

from trainer.config import Trial
from trainer.errors import FieldError, UsageError
from trainer.models import last_layers
from trainer.published import published
from trainer.shards.meta import class_names
from trainer.timm_names import PRETRAINED
from trainer.weights_file import read_content, weights_file

WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # of PyTorch, at any depth
COUNTERS = "num_batches_tracked"  # absent before PyTorch 0.4; does not enter the computation of our batch norm
BESIDE = ("total_ops", "total_params")  # that a profiler leaves in every layer
# Tensors shaped like the weights that are none: moments of optimizers, gradients.
STATISTICS = re.compile(
    r"(?<![a-z])(optims?|[a-z_]*optimi[sz]ers?|exp_avg[a-z_]*|[a-z_]*avg_sq|momentum_buf[a-z]*|grads?|gradients?)(?![a-z])"
)
# What training scripts call the weights. Under another name they may be those of the start, or of another network.
NAMED = re.compile(
    r"(module|model|net|network|backbone|(base_)?encoder(_q)?|weights|params|state)(_state)?(_dict)?|\d+"
)
# Moving averages: EMA and SWA, the momentum encoders of MoCo and BYOL, the teacher of DINO.
AVERAGED = re.compile(r"(?<![a-z])(ema|swa|averaged?|shadow|momentum|teacher|target|encoder_k)(?![a-z])")
STUDENT = re.compile(r"(?<![a-z])student(?![a-z])")
SHOWN = 3


@dataclass(frozen=True)
class Loaded:
    """What was done with a checkpoint.

    Args:
        head: `own` (the file's last layer as it is), `rows` (those of the data's classes) or `new` (fresh weights).
        notes: sentences for the user, where there was a choice or something was left out.
    """

    head: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Copy:
    """The model's parameters as found at one place.

    Args:
        place: keys of the dictionary within the file, and the prefix there, such as `state_dict/module.`.
        tensors: by the model's names.
        inside: names that would belong to the model if it had them.
        beside: names of what stands beside the model.
    """

    place: str
    tensors: dict[str, Tensor]
    inside: tuple[str, ...]
    beside: tuple[str, ...]

    @property
    def words(self) -> str:
        """The place in lower case, stateDict as state_dict."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", self.place).lower()

    @property
    def averaged(self) -> bool:
        return AVERAGED.search(self.words) is not None

    @property
    def named(self) -> bool:
        return all(NAMED.fullmatch(part) for part in re.split("[/.]", self.words) if part)


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
        model: gets them in its own precision.
        checkpoint: a file or a trial's folder, path or URL; or `pretrained`.
        name: of the model, for `pretrained`.
        classes: names of the data's classes, in order.
        head: `own`: the last layer must fit, too, and be of the data's classes in their order where the file names its
            own; `rows`: or be of classes that are known by name (those the file names; ImageNet's 1,000 if the data's
            are WordNet ids), of which those of the data are taken; `new`: those, or the last layer stays as it is in
            the model.
        ema: whether to take the moving average that the file has beside the weights.

    Raises:
        UsageError: if a parameter or buffer is missing, of another shape or not finite, or a layer is there that the
            model has not, or the file names other classes; the model is unchanged then.
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
    found = _copies(content, own, layers, _buffers(model))
    copies = [copy for copy in found if not STATISTICS.search(copy.words)]
    if found and not copies:
        raise _misfit(checkpoint, [f"it has no weights, only what an optimizer keeps ({found[0].place})"])
    if not copies:
        there = [name for _, tensors in _dictionaries(content) for name in tensors]
        held = f"none of its names is there, such as {next(iter(own))}, but {', '.join(there[:SHOWN])}"
        raise _misfit(checkpoint, [held if there else "it holds no tensors under names"])
    copy, notes = _choose(copies, checkpoint, own, layers, ema)
    if odd := _unusable(copy.tensors):
        raise _misfit(checkpoint, odd)
    problems = _problems(copy, own)
    body = [problem for name, problem in problems.items() if not _of(layers, name)]
    if body:
        raise _misfit(checkpoint, body)
    state = dict(copy.tensors)
    count = len(state.get(f"{layers[0]}.weight", ())) if layers else 0
    names = _names(checkpoint, content, count)
    # A trial's checkpoint that names none is older than they are there, and in the order of its own data.
    known = names or (() if trial_settings(content) else imagenet_wnids())
    rows = _rows(known, classes, count)
    remedy = _remedy(head, names, rows)
    if rows is None and names and classes and head == "rows":
        raise _other_classes(checkpoint, names, classes, remedy)
    if names and classes and head == "own" and not problems and list(names) != list(classes):
        raise _other_classes(checkpoint, names, classes, remedy)
    if rows is not None and head != "own":
        mine = {name: value for name, value in state.items() if _of(layers, name)}
        state |= {name: value[rows] for name, value in mine.items() if value.ndim and len(value) == count}
        problems = _problems(dataclasses.replace(copy, tensors=state), own)
        if rows != list(range(count)):
            notes.append(taken(checkpoint, count, rows))
    elif head == "new":
        if not layers:
            raise FieldError("new_head", True, "which layer of this model is its last is not known; leave it out")
        dropped = [name for name in (*state, *copy.inside) if _of(layers, name)]
        if dropped:
            notes.append(f"the last layer of {checkpoint} is left out: {_groups(dropped)}")
        state, problems = {name: value for name, value in state.items() if not _of(layers, name)}, {}
    if problems:
        raise _misfit_of_head(checkpoint, layers, state, own, list(problems.values()), remedy)
    for name, value in state.items():
        if value.is_floating_point() and not bool(value.float().isfinite().all()):
            what = "NaN" if bool(value.float().isnan().any()) else "infinity"
            raise FieldError("checkpoint", checkpoint, f"{name} holds {what}; the training that wrote it had diverged")
    model.load_state_dict(state, strict=False)
    kind = "own" if head == "own" else "rows" if rows is not None else "new" if head == "new" else "own"
    return Loaded(kind, tuple(notes))


def match_classes(names: Sequence[str], classes: Sequence[str], checkpoint: str) -> list[int]:
    """Which of a model's outputs stand for the data's classes, in their order.

    Args:
        names: classes of the model's outputs, in order.
        classes: of the data, in order.
        checkpoint: for the message.

    Raises:
        UsageError: if the model has not all of them; it names those that differ.
    """
    rows = _rows(names, classes, len(names))
    if rows is None:
        raise _other_classes(checkpoint, names, classes, _remedy("rows", names, None))
    return rows


def taken(checkpoint: str, count: int, rows: Sequence[int]) -> str:
    """The line for the user where outputs are taken by the names of their classes."""
    if len(rows) == count:
        return f"{checkpoint} has the data's {count} classes in another order: its outputs are taken by their names"
    return f"of the {count} classes of its last layer those of the data are taken, by their names"


def _copies(content: Any, own: dict[str, Tensor], layers: Sequence[str], buffers: set[str]) -> list[_Copy]:
    """The model's parameters in every dictionary that has some, under every prefix that leads to the most."""
    found, modules = [], {name.partition(".")[0] for name in own}
    body = {name for name in own if not _of(layers, name)}
    for place, tensors in _dictionaries(content):
        names = _unwrapped(tensors, own)
        counts = Counter(n.removesuffix(suffix) for n in names for suffix in _suffixes(n) if suffix in body)
        most = max(counts.values(), default=0)
        prefixes = [prefix for prefix, count in counts.items() if count == most]
        for prefix in prefixes:
            here = {name.removeprefix(prefix): key for name, key in names.items() if name.startswith(prefix)}
            unknown = {name for name in here.keys() - own.keys() - buffers if not name.endswith(BESIDE)}
            inside = {name for name in unknown if name.partition(".")[0] in modules}
            others = tuple(other for other in prefixes if other != prefix and not prefix.startswith(other))
            beside = {f"{prefix}{name}" for name in unknown - inside if not f"{prefix}{name}".startswith(others)}
            beside |= {name for name in names if not name.startswith((prefix, *others))}
            kept = {name: tensors[key] for name, key in here.items() if name in own}
            where = "/".join((*place, prefix) if prefix else place)
            found.append(_Copy(where, kept, tuple(sorted(inside)), tuple(sorted(beside))))
    return found


def _dictionaries(content: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    if isinstance(content, list | tuple):
        content = {str(number): value for number, value in enumerate(content)}
    if not isinstance(content, dict) or len(place) > 6:
        return
    named = {key: value for key, value in content.items() if isinstance(key, str)}
    tensors = {key: value for key, value in named.items() if isinstance(value, Tensor)}
    if tensors:
        yield place, tensors
    for key, value in named.items():
        yield from _dictionaries(value, (*place, key))


def _unwrapped(tensors: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, str]:
    """Names without what PyTorch's wrappers put into them, and the keys they stand for."""
    used = {part for name in own for part in name.split(".")}
    names = {".".join(p for p in key.split(".") if p not in WRAPPERS or p in used): key for key in tensors}
    return names if len(names) == len(tensors) else {key: key for key in tensors}


def _suffixes(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[start:]) for start in range(len(parts)))


def _of(layers: Sequence[str], name: str) -> bool:
    """Whether a name belongs to the last layer, as fc.weight does, and fc.2.weight where a model has fc.weight."""
    return name.startswith(tuple(f"{layer}." for layer in layers))


def _buffers(model: nn.Module) -> set[str]:
    """Tables that a model computes itself and older checkpoints hold."""
    return {name for name, _ in model.named_buffers()}


def _choose(
    copies: list[_Copy], checkpoint: str, own: dict[str, Tensor], layers: Sequence[str], ema: bool
) -> tuple[_Copy, list[str]]:
    """The fullest copy; of several that are as full the plain one, or under `ema` the averaged one.

    One under the usual name goes before fuller ones elsewhere, so what it lacks is said and not taken from another.
    """

    def fit(copy: _Copy) -> tuple[int, int]:
        shaped = [name for name, value in copy.tensors.items() if value.shape == own[name].shape]
        return sum(not _of(layers, name) for name in shaped), len(shaped)

    best = max(fit(copy)[0] for copy in copies)
    full = [copy for copy in copies if fit(copy)[0] == best]
    averaged = [copy for copy in full if copy.averaged]
    if ema and not averaged:
        there = ", ".join(copy.place or "the weights alone" for copy in full)
        raise FieldError(
            "ema", True, f"{checkpoint} has no moving average of the weights; it has {there}. Leave it out"
        )
    # Self-distillation publishes both, and its authors evaluate the teacher.
    plain = [copy for copy in copies if not copy.averaged and not STUDENT.search(copy.words)]
    named = [copy for copy in plain if copy.named and 2 * fit(copy)[0] > best]
    pool = averaged if ema else named or [copy for copy in plain if fit(copy)[0] == best] or averaged or full
    chosen = max(pool, key=lambda copy: (fit(copy), -copy.place.count(".")))
    notes = []
    others = [copy.place or "the bare weights" for copy in full if copy is not chosen]
    if others or chosen.averaged:
        remedy = "; ema takes a moving average" if averaged and not chosen.averaged else ""
        also = f"; also there: {', '.join(others)}{remedy}" if others else ""
        notes.append(f"weights taken from {chosen.place or 'the bare weights'} of {checkpoint}{also}")
    if chosen.beside:
        notes.append(f"no part of the model, left out of {checkpoint}: {_groups(chosen.beside)}")
    return chosen, notes


def _groups(names: Sequence[str]) -> str:
    """The layers of these names, the first of them."""
    groups = list(dict.fromkeys(name.rpartition(".")[0] or name for name in names))
    more = f" and {len(groups) - SHOWN} more" if len(groups) > SHOWN else ""
    return f"{', '.join(groups[:SHOWN])}{more}"


def _unusable(tensors: dict[str, Tensor]) -> list[str]:
    """What has no plain values to load."""
    kinds = {
        name: "has no values (it is on the meta device)" if value.is_meta else f"is a tensor of {str(value.layout)[6:]}"
        for name, value in tensors.items()
        if value.is_meta or value.layout != torch.strided
    }
    return [f"{name} {kind}" for name, kind in kinds.items()]


def _problems(copy: _Copy, own: dict[str, Tensor]) -> dict[str, str]:
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


def _misfit_of_head(
    checkpoint: str,
    layers: Sequence[str],
    state: dict[str, Tensor],
    own: dict[str, Tensor],
    problems: list[str],
    remedy: str,
) -> UsageError:
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


def _remedy(head: str, names: Sequence[str] | None, rows: Sequence[int] | None) -> str:
    """What to do about a last layer of other classes: `rows` are there if it has those of the data by name."""
    if head == "rows":
        return "evaluate it on data of its own classes, or finetune it on these first, by a sweep with `new_head`"
    if rows is None:
        return "`new_head` of a sweep puts a fresh one in its place"
    whose = "its" if names else "ImageNet's"
    return f"`new_head` of a sweep takes {whose} own rows of the data's classes, by their names"


def _other_classes(checkpoint: str, names: Sequence[str], classes: Sequence[str], remedy: str) -> UsageError:
    new, gone = (
        [name for name in some if name not in set(others)] for some, others in ((classes, names), (names, classes))
    )
    if not new:
        differ = "in another order" if not gone else f"and others ({_few(gone)}) in an order of its own"
        return FieldError("checkpoint", checkpoint, f"it has the data's classes {differ}; {remedy}")
    of_its_own = f", where it has {_few(gone)}" if gone else ""
    return FieldError(
        "checkpoint", checkpoint, f"its classes are not the data's: {_few(new)} it has not{of_its_own}; {remedy}"
    )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _names(checkpoint: str, content: Any, count: int) -> tuple[str, ...] | None:
    """The classes of the last layer in their order, where the file names them."""
    said = content.get("classes") if isinstance(content, dict) else None
    try:
        names = class_names(checkpoint, list(said) if isinstance(said, tuple) else said)
    except UsageError:  # nothing that names classes
        return None
    return tuple(names) if len(names) == count else None


def trial_settings(content: Any) -> dict[str, Any]:
    """Settings of `Trial` in a trial's checkpoint, empty for any other file."""
    trial = content.get("trial") if isinstance(content, dict) else None
    known = {field.name for field in dataclasses.fields(Trial)}
    return {name: value for name, value in trial.items() if name in known} if isinstance(trial, dict) else {}


def _rows(names: Sequence[str], classes: Sequence[str], count: int) -> list[int] | None:
    """Which rows of a last layer of so many are the data's classes; None where it has not all of them by name."""
    if len(names) != count or not classes:
        return None
    if list(names) == list(classes):  # whatever stands twice there
        return list(range(count))
    often = Counter(names)
    rows = {name: row for row, name in enumerate(names) if often[name] == 1}
    return [rows[name] for name in classes] if rows.keys() >= set(classes) else None


@lru_cache
def imagenet_wnids() -> tuple[str, ...]:
    """WordNet ids of ImageNet's 1,000 classes in the order that published weights have them."""
    return tuple(files("trainer").joinpath("imagenet_wnids.txt").read_text().split())
