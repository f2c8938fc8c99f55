"""The embedded default: handwritten digits as shards, and a small net that is briefly pretrained on them."""

import dataclasses
from typing import Any

import torch

from sweeps.messages import note, stage
from sweeps.settings import Sweep
from trainer.config import Trial
from trainer.digits import write_digits
from trainer.fit import fit
from trainer.locations import whole_file
from trainer.metrics import VAL_ACCURACY

PRETRAINING: dict[str, Any] = {
    "weight": 0.0,
    "epochs": 3,
    "images_per_epoch": 3840,
    "batch_size": 32,
    # 0.1, 0.01 and 0.0001 in the three epochs. At a constant rate the accuracy is what the last few steps happen to
    # make it, around 0.95 and another on each CPU; so it is 0.98 to 0.99 on all that were tried.
    "schedule": "imagenet",
    "learning_rate": 0.8,  # for a batch of 256
    "batch_norm": "flow",
    "compile": False,
    "robust_images": 1,
}


def embed(sweep: Sweep) -> Sweep:
    """Make data and checkpoint in the sweep's folder."""
    stage("writing handwritten digits as shards")
    data = f"{sweep.folder}/digits"
    write_digits(data)
    stage(f"pretraining {sweep.trial.model} on them")
    trial = dataclasses.replace(sweep.trial, data=data)
    checkpoint = pretrain(trial, f"{sweep.folder}/pretrained.pt")
    return dataclasses.replace(sweep, trial=dataclasses.replace(trial, checkpoint=checkpoint))


def pretrain(trial: Trial, path: str) -> str:
    """Train the start checkpoint, in this process, and write it; returns the path."""
    states: list[dict] = []
    pretraining = dataclasses.replace(trial, **PRETRAINING)
    fit(pretraining, lambda report, state: states.append(state | {"accuracy": report.metrics[VAL_ACCURACY]}))
    with whole_file(path) as stream:
        torch.save({"model": states[-1]["model"]}, stream)
    note(f"  accuracy {100 * states[-1]['accuracy']:.1f} % on val")
    return path
