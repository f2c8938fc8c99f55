"""The weights that all trials of a sweep start from, made once where published ones do not fit as they are."""

import dataclasses
from collections.abc import Callable

import torch
from torch import nn

from sweeps.capacity import where_workers_compute
from sweeps.messages import Advanced, note, stage, tell
from sweeps.settings import Sweep
from trainer.fit import count_classes, prepare_model
from trainer.head import train_head
from trainer.locations import whole_file
from trainer.published import without_network
from trainer.shards import read_shards
from trainer.timm_names import HUB, PRETRAINED
from trainer.weights import Loaded, load_weights

START = "start.pt"


def is_made(sweep: Sweep) -> bool:
    """Whether the sweep writes the checkpoint of its trials itself; else they read the given one, or start afresh."""
    trial = sweep.trial
    asked = sweep.new_head or sweep.ema or trial.checkpoint == PRETRAINED
    return asked or trial.model.startswith(HUB)


def load_start(sweep: Sweep, say: Callable[[str], None] = lambda line: None) -> tuple[nn.Module, Loaded | None]:
    """The model with the sweep's checkpoint, but for a last layer that is to be trained yet, and what was done with it.

    Raises:
        UsageError: if the checkpoint cannot be read or does not fit.
    """
    trial = sweep.trial
    if trial.checkpoint == PRETRAINED:
        say(f"downloading the published weights of {trial.model}")
    model = prepare_model(dataclasses.replace(trial, checkpoint=None), count_classes(trial.data))
    if trial.checkpoint is None:
        return model, None
    loaded = load_weights(
        model,
        trial.checkpoint,
        name=trial.model,
        classes=read_shards(trial.data, "train").classes,
        head="new" if sweep.new_head else "own",
        ema=sweep.ema,
    )
    for line in loaded.notes:
        say(line)
    return model, loaded


def make_start(sweep: Sweep) -> Sweep:
    """Write start.pt into the sweep's folder, where `is_made` says so; the sweep whose trials start from it.

    Raises:
        UsageError: if the weights do not fit, or a new last layer does not learn.
    """
    if not is_made(sweep):
        return sweep
    model, loaded = load_start(sweep)
    trial = dataclasses.replace(sweep.trial, model=without_network(sweep.trial.model), checkpoint=None)
    state, classes = model.state_dict(), read_shards(trial.data, "train").classes
    if loaded and loaded.head == "new" and sweep.head_steps:
        stage(f"training a new last layer for {len(classes)} classes, {sweep.head_steps} steps, the rest frozen")
        steps = iter(range(1, sweep.head_steps + 1))
        head = where_workers_compute(
            sweep.placement,
            train_head,
            trial,
            state,
            sweep.head_steps,
            progress=lambda: tell(Advanced("last layer", next(steps) / sweep.head_steps)),
        )
        state = head.state
        note(f"  accuracy {100 * head.before:.1f} % before, {100 * head.after:.1f} % after, on val")
    if loaded is None:
        return dataclasses.replace(sweep, trial=trial)
    path = f"{sweep.folder}/{START}"
    with whole_file(path) as stream:
        torch.save({"model": state, "classes": list(classes), "source": sweep.trial.checkpoint}, stream)
    return dataclasses.replace(sweep, trial=dataclasses.replace(trial, checkpoint=path), source=sweep.trial.checkpoint)
