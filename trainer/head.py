"""A new last layer for weights made for other classes: a linear probe on the features the network has.

Only the last layer learns; the network is in evaluation mode, so its features do not change, and neither does its batch
norm. What follows, calibration and heatmaps, would mean nothing on a layer of random weights.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regularizers.base import finite_examples
from trainer.cache import ShardCache
from trainer.config import Trial
from trainer.data import LoaderOptions, eval_loader, train_loader
from trainer.errors import FieldError
from trainer.models import build_model, last_layers
from trainer.preprocess import Transform
from trainer.shards import Shards, evaluation_splits, read_shards

LEARNING_RATE = 1e-2  # of Adam, falling to nothing over the steps
MEASURED = 1024  # images of val, for the accuracy before and after


@dataclass(frozen=True)
class Head:
    """A last layer that was trained.

    Args:
        state: state dict of the whole model, on the CPU.
        before: accuracy on val with the random layer, fraction of 1.
        after: the same with the trained one.
    """

    state: dict[str, Tensor]
    before: float
    after: float


def train_head(
    trial: Trial,
    state: dict[str, Tensor],
    steps: int,
    device: torch.device,
    cache: ShardCache,
    done: Callable[[], None] = lambda: None,
) -> Head:
    """Train the last layer alone with cross-entropy; a function of the trial's seed.

    Args:
        trial: model and data; its regularizer does not matter.
        state: weights of the whole model, those of the last layer fresh.
        done: callback after each step.

    Raises:
        UsageError: if the loss does not stay finite.
    """
    train, (val, _) = read_shards(trial.data, "train"), evaluation_splits(trial.data)
    model = build_model(trial.model, len(train.classes), trial.activation)
    model.load_state_dict(state)
    model.to(device).eval().requires_grad_(False)
    weights = [p for layer in last_layers(model) for p in model.get_submodule(layer).requires_grad_().parameters()]
    before = _accuracy(model, val, trial, device, cache)
    optimizer = torch.optim.Adam(weights, lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    transform = Transform(trial.image_size, trial.augment, trial.flip)
    options = LoaderOptions.of_worker(trial, device, cache)
    with train_loader(train, transform, options, seed=trial.seed, steps=steps) as loader:
        for batch in loader.epoch():
            whole = finite_examples(batch.images)
            if not whole.any():
                continue
            loss = F.cross_entropy(model(batch.images[whole]).float(), batch.labels[whole])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            done()
    if not all(bool(p.isfinite().all()) for p in weights):
        raise FieldError(
            "new_head", True, f"the last layer of {trial.model!r} does not learn on these weights: its loss is NaN"
        )
    after = _accuracy(model, val, trial, device, cache)
    return Head({name: value.cpu() for name, value in model.state_dict().items()}, before, after)


def _accuracy(model: nn.Module, shards: Shards, trial: Trial, device: torch.device, cache: ShardCache) -> float:
    transform, options = Transform(trial.image_size, train=False), LoaderOptions.of_worker(trial, device, cache)
    with eval_loader(shards, transform, options, examples=MEASURED) as loader, torch.no_grad():
        hits = [
            (model(batch.images).argmax(1) == batch.labels)[finite_examples(batch.images)] for batch in loader.epoch()
        ]
    return float(torch.cat(hits).float().mean())
