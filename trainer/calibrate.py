"""The unit of each regularizer's weight: where its gradient is as large as the cross-entropy's.

unit = ‖∇θ CE‖ / ‖∇θ penalty‖ at the start checkpoint over a few fixed batches. Measured in units, one search range
fits every penalty, model and image size.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from regularizers import REGULARIZERS
from trainer.cache import ShardCache
from trainer.config import Trial, UsageError
from trainer.data import LoaderOptions, train_loader
from trainer.double_backprop import name_missing_derivative
from trainer.fit import count_classes, make_loss, prepare_model
from trainer.preprocess import Transform
from trainer.shards import read_shards
from trainer.step import RegularizedLoss, blank_broken, penalty_of, set_mode

BATCHES = 4


def calibrate(
    trial: Trial,
    names: Sequence[str],
    device: torch.device,
    cache: ShardCache,
    begun: Callable[[str], None] = lambda name: None,
    settings: Mapping[str, Mapping[str, int | float]] | None = None,
) -> dict[str, float]:
    """Unit of every named regularizer but those without a penalty (`none`).

    Args:
        trial: model, checkpoint and data; its regularizer does not matter.
        begun: callback with the name of each regularizer as its turn comes.
        settings: settings of each regularizer, by field; the rest have their defaults.

    Raises:
        UsageError: if a penalty breaks its contract, has no gradient at this model or an infinite one, or if the model
            cannot be differentiated twice or compiled. A sweep calibrates first, so this shows before any trial.
    """
    model = prepare_model(trial, count_classes(trial.data)).to(device)
    set_mode(model, trial.batch_norm)
    shards = read_shards(trial.data, "train")
    transform = Transform(trial.image_size, trial.augment, trial.flip)
    options = LoaderOptions(normalization=trial.normalization, batch_size=trial.batch_size, device=device, cache=cache)
    loader = train_loader(shards, transform, options, seed=trial.seed, steps=BATCHES)
    batches = list(loader.epoch(0))
    cross_entropy = sum(
        _norm(RegularizedLoss(model, REGULARIZERS["none"]())(batch.images, batch.labels).loss, model)
        for batch in batches
    )
    units = {}
    for name in names:
        begun(name)
        regularizer = REGULARIZERS[name](**(settings or {}).get(name, {}))
        if regularizer.strengths()[1] == 0:
            continue
        loss, size = make_loss(model, dataclasses.replace(trial, regularizer=name)), 0.0
        for batch in batches:
            generator = torch.Generator().manual_seed(trial.seed)
            with name_missing_derivative(trial.model):
                finite, images = blank_broken(batch.images)  # as the training does
                forward = loss.forward_pass(images, batch.labels, generator)
                size += _norm((penalty_of(regularizer, forward) * finite).mean(), model)
        unit = cross_entropy / size if size > 0 else math.inf
        if not (math.isfinite(unit) and unit > 0):
            raise UsageError(
                f"regularizer {name!r} cannot be calibrated on model {trial.model!r}: gradient of the cross-entropy "
                f"{cross_entropy:g}, of the penalty {size:g}; leave it out of `regularizers`"
            )
        units[name] = unit
    if trial.compile:
        make_loss(model, dataclasses.replace(trial, regularizer=names[-1]))(batches[0].images, batches[0].labels)
    return units


def _norm(loss: Tensor, model: nn.Module) -> float:
    gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return math.sqrt(sum(float(g.double().square().sum()) for g in gradients if g is not None))
