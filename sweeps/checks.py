"""What a sweep's settings may be: refused with the field's name, what is wrong and what to do."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from sweeps.proposals import named
from trainer.config import check_choices, check_distinct, check_regularizers
from trainer.errors import FieldError
from trainer.locations import absolute, is_url
from trainer.model_input import check_model
from trainer.timm_names import PRETRAINED

if TYPE_CHECKING:
    from sweeps.settings import Sweep
    from trainer.config import Trial

SEED_LIMIT = 2**31  # those of trials come after it
STORES = ("s3", "gs", "file")  # that can be written
LONGEST_NAME = 200  # file systems take 255 bytes, and names of files beside the folder are made of it


def check_sweep(sweep: Sweep) -> None:
    """Refuse what cannot be, as far as it can be told without PyTorch.

    Raises:
        FieldError: naming the field.
    """
    _check_names(sweep)
    _check_search(sweep)
    _check_start_weights(sweep)
    _check_numbers(sweep)


def _check_names(sweep: Sweep) -> None:
    check_model(sweep.trial.model)
    check_regularizers("regularizers", sweep.regularizers)
    check_choices(sweep)
    check_distinct("regularizers", sweep.regularizers)
    if not sweep.regularizers:
        raise FieldError("regularizers", sweep.regularizers, "give at least one name")
    if sweep.trial.regularizer != "none" or sweep.trial.penalty_settings:
        own = "regularizer" if sweep.trial.regularizer != "none" else "penalty_settings"
        remedy = "each trial of a sweep gets its own; give `regularizers` and `fixed` of the sweep instead"
        raise FieldError(own, getattr(sweep.trial, own), remedy)
    if sweep.trial.seed >= SEED_LIMIT:
        raise FieldError("seed", sweep.trial.seed, f"give a whole number from 0 to below {SEED_LIMIT}")
    if re.search(r"[/\\:'%@`\x00-\x1f]|^[-. ]| $", sweep.name):
        remedy = "give a name without / \\ : ' % @ `, that begins with no dot, dash or space and ends with no space"
        raise FieldError("name", repr(sweep.name), remedy)
    if len(sweep.name.encode()) > LONGEST_NAME:
        raise FieldError("name", sweep.name, f"give a name of at most {LONGEST_NAME} bytes")
    if is_url(sweep.storage) and urlsplit(sweep.storage).scheme not in STORES:
        raise FieldError("storage", sweep.storage, f"give a folder or a URL of {', '.join(STORES)}")
    if sweep.keep not in ("all", "best") and not re.fullmatch(r"top-[1-9]\d*", sweep.keep):
        raise FieldError("keep", sweep.keep, "give all, best or top-K, such as top-3")
    if sweep.seeds < 0 or sweep.seeds == 1:
        raise FieldError("seeds", sweep.seeds, "give at least 2, as one alone has no interval, or 0 for none")


def _check_search(sweep: Sweep) -> None:
    if sweep.strengths is not None:
        if not sweep.strengths:
            raise FieldError("strengths", sweep.strengths, "give at least one number, or None for a search")
        check_distinct("strengths", sweep.strengths)
        if sweep.allocation == "adaptive":
            raise FieldError("strengths", sweep.strengths, "leave Optuna nothing to choose; leave out `allocation`")
        if sweep.trials_per_regularizer not in (None, len(sweep.strengths)):
            raise FieldError(
                "strengths",
                sweep.strengths,
                f"one trial runs for each of the {len(sweep.strengths)}, but `trials_per_regularizer` is "
                f"{sweep.trials_per_regularizer}; leave that out",
            )
        if not all(0 < strength < float("inf") for strength in sweep.strengths):
            raise FieldError("strengths", sweep.strengths, "give finite numbers above 0")
    if sweep.trial.weight and (sweep.strengths is not None or sweep.allocation == "adaptive"):
        raise FieldError(
            "weight",
            sweep.trial.weight,
            "is that of every penalty and leaves nothing to search; leave it out, or `strengths` and `allocation` "
            "adaptive",
        )
    if sweep.sampler == "grid" and (sweep.strengths is not None or sweep.trial.weight):
        other = "strengths" if sweep.strengths is not None else "weight"
        raise FieldError("sampler", sweep.sampler, f"`{other}` says what to try already; leave out one of the two")
    if sweep.sampler in ("random", "grid") and sweep.allocation == "adaptive":
        raise FieldError("sampler", sweep.sampler, "moves no trials; give dial or tpe, or leave out `allocation`")


def _check_start_weights(sweep: Sweep) -> None:
    for name in ("new_head", "ema"):
        if getattr(sweep, name) and sweep.trial.checkpoint is None:
            raise FieldError(name, True, "needs `checkpoint`, the weights to start from")
    if sweep.head_steps < 0:
        raise FieldError("head_steps", sweep.head_steps, "give a whole number; 0 leaves the layer random")
    if sweep.head_steps != type(sweep).head_steps and not sweep.new_head:
        raise FieldError("head_steps", sweep.head_steps, "needs `new_head`; give both, or leave both out")


def _check_numbers(sweep: Sweep) -> None:
    if sweep.local_dir not in (None, sweep.storage) and not is_url(sweep.storage):
        remedy = f"needs a `storage` that is a URL; leave it out, as everything is kept in {sweep.storage}"
        raise FieldError("local_dir", sweep.local_dir, remedy)
    if not 0 <= sweep.max_accuracy_drop < 1:
        drop = sweep.max_accuracy_drop
        points = f"; {drop:g} points are {drop / 100:g}" if 1 <= drop <= 100 else ""
        raise FieldError("max_accuracy_drop", drop, f"give a fraction from 0 to below 1{points}")
    for name in ("trials_per_regularizer", "max_concurrent", "finalists"):
        if (value := getattr(sweep, name)) is not None and value < 1:
            raise FieldError(name, value, "give a whole number of at least 1")
    for number in sweep.extensions:
        if number < 1:
            raise FieldError("extensions", number, "give a whole number of at least 1")
    if sweep.trial.images_per_epoch is not None:
        sweep.trial.steps_per_epoch(sweep.placement.workers)


def check_files(trial: Trial) -> None:
    """Refuse local data and checkpoints that are not there; what they hold is read once PyTorch is imported.

    Raises:
        FieldError: naming the field.
    """
    missing = {"data": "no such folder; give one that holds train-000000.tar …", "checkpoint": "no such file"}
    for name, words in missing.items():
        location = getattr(trial, name)
        if location in (None, PRETRAINED) or is_url(location) or re.search(r"[{*?[]", location):
            continue
        if not Path(absolute(location)).exists():
            raise FieldError(name, location, words)


def check_ranges(sweep: Sweep) -> None:
    """Refuse strengths and fixed settings outside the ranges of the regularizers, whose files need PyTorch.

    Raises:
        FieldError: naming those.
    """
    from regularizers import REGULARIZERS

    ranges = [REGULARIZERS[name].strengths() for name in sweep.names[1:]]
    low, high = (
        max((low for low, _ in ranges), default=0.0),
        min((high for _, high in ranges), default=float("inf")),
    )
    wrong = [strength for strength in sweep.strengths or () if not low <= strength <= high]
    if wrong:
        raise FieldError("strengths", wrong, f"give numbers from {low:g} to {high:g}")
    for name, value in sweep.fixed.items():
        check_fixed(name, value, sweep.names)


def check_fixed(name: str, value: float, regularizers: Iterable[str]) -> None:
    """Refuse a fixed setting that none of the regularizers has, or whose value is outside its range.

    Raises:
        FieldError: naming it.
    """
    from regularizers import REGULARIZERS

    ranges = {key: one for own in regularizers for key, one in named(own, REGULARIZERS[own].settings()).items()}
    if name.endswith(".weight"):
        raise FieldError("fixed", name, "weights are set by `strengths` or `weight`")
    if name not in ranges:
        near = difflib.get_close_matches(name, ranges, n=1)
        known = f"choose from {', '.join(ranges)}" if ranges else "they have none but the weight"
        known = f"did you mean {near[0]}?" if near else known
        raise FieldError("fixed", name, f"no regularizer of this sweep has that setting; {known}")
    if not ranges[name].holds(value):
        raise FieldError("fixed", {name: value}, f"give {ranges[name]}")
