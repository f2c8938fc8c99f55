"""The weights that all trials of a sweep start from, made once where published ones do not fit as they are."""

import dataclasses
from collections.abc import Callable

import torch
from rich.console import Console
from rich.progress import Progress
from torch import nn

from sweeps.capacity import on_a_worker
from sweeps.settings import Sweep
from trainer.fit import count_classes, prepare_model
from trainer.head import train_head
from trainer.locations import whole_file
from trainer.published import without_network
from trainer.timm_names import PRETRAINED
from trainer.shards import read_shards
from trainer.timm_names import HUB
from trainer.weights import Loaded, load_weights

START = "start.pt"


def is_made(sweep: Sweep) -> bool:
    """Whether the sweep writes the checkpoint of its trials itself; else they read the given one, or start afresh."""
    trial = sweep.trial
    asked = sweep.new_head or sweep.ema or trial.checkpoint == PRETRAINED
    return asked or trial.model.startswith(HUB)


def load_start(sweep: Sweep, say: Callable[[str], None] = lambda line: None) -> tuple[nn.Module, Loaded | None]:
    """The model with the sweep's checkpoint, but for a last layer that is to be trained yet, and what was done with it.

    Args:
        sweep: gives model, data and checkpoint.
        say: takes lines for the user.

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
    for note in loaded.notes:
        say(note)
    return model, loaded


def make_start(sweep: Sweep, say: Callable[[str], None], console: Console) -> Sweep:
    """Write start.pt into the sweep's folder, where `is_made` says so; the sweep whose trials start from it.

    Args:
        sweep: as it was asked for.
        say: takes lines for the user.
        console: shows progress and the accuracy of a new last layer.

    Raises:
        UsageError: if the weights do not fit, or a new last layer does not learn.
    """
    if not is_made(sweep):
        return sweep
    model, loaded = load_start(sweep)
    trial = dataclasses.replace(sweep.trial, model=without_network(sweep.trial.model), checkpoint=None)
    state, classes = model.state_dict(), read_shards(trial.data, "train").classes
    if loaded and loaded.head == "new" and sweep.head_steps:
        say(f"training a new last layer for {len(classes)} classes, {sweep.head_steps} steps, the rest frozen")
        device = torch.device("cuda" if sweep.placement.gpus else "cpu")
        what = (trial, state, sweep.head_steps, device, sweep.placement.cache)
        if device.type == "cuda" and not torch.cuda.is_available():  # a head without a GPU
            head = on_a_worker(sweep.placement, train_head, *what)
        else:
            with Progress(console=console, transient=True, disable=not console.is_terminal) as bars:
                bar = bars.add_task("last layer", total=sweep.head_steps)
                head = train_head(*what, lambda: bars.update(bar, advance=1))
        state = head.state
        console.print(
            f"  accuracy {100 * head.before:.1f} % before, {100 * head.after:.1f} % after, on val", highlight=False
        )
    if loaded is None:
        return dataclasses.replace(sweep, trial=trial)
    path = f"{sweep.folder}/{START}"
    with whole_file(path) as stream:
        torch.save({"model": state, "classes": list(classes), "source": sweep.trial.checkpoint}, stream)
    return dataclasses.replace(sweep, trial=dataclasses.replace(trial, checkpoint=path), source=sweep.trial.checkpoint)
