"""The unit of each regularizer's weight: where its gradient is as large as the cross-entropy's.

unit = ‖∇θ CE‖ / ‖∇θ penalty‖ at the start checkpoint over a few fixed batches. Measured in units, one search range
fits every penalty, model and image size.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regularizers import REGULARIZERS
from trainer.config import Trial, UsageError
from trainer.data import train_loader
from trainer.fit import count_classes, prepare_model
from trainer.shards import read_shards
from trainer.step import forward_pass, set_mode

BATCHES = 4


def calibrate(trial: Trial, names: Sequence[str], device: torch.device) -> dict[str, float]:
    """Unit of every named regularizer but those without a penalty (`none`).

    Raises:
        UsageError: if a penalty has no gradient at this model, or an infinite one.
    """
    model = prepare_model(trial, count_classes(trial.data)).to(device)
    set_mode(model, trial.batch_norm)
    shards = read_shards(trial.data, "train")
    loader = train_loader(
        shards, rank=0, world_size=1, seed=trial.seed, steps=BATCHES, batch_size=trial.batch_size, loader_workers=0
    )
    batches = [batch.to(device) for batch in loader.epoch(0)]
    cross_entropy = 0.0
    for batch in batches:
        logits = model(batch.images)
        cross_entropy += _norm(F.cross_entropy(logits, batch.labels), model)
    units = {}
    for name in names:
        regularizer = REGULARIZERS[name]()
        if not regularizer.needs_heatmap:
            continue
        size = 0.0
        for batch in batches:
            generator = torch.Generator().manual_seed(trial.seed)
            size += _norm(regularizer.penalty(forward_pass(model, batch, regularizer, generator)).mean(), model)
        unit = cross_entropy / size if size > 0 else math.inf
        if not (math.isfinite(unit) and unit > 0):
            raise UsageError(
                f"regularizer {name!r} cannot be calibrated on model {trial.model!r}: gradient of the cross-entropy "
                f"{cross_entropy:g}, of the penalty {size:g}; leave it out of --regularizers"
            )
        units[name] = unit
    return units


def _norm(loss: Tensor, model: nn.Module) -> float:
    gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return math.sqrt(sum(float(g.double().square().sum()) for g in gradients if g is not None))
