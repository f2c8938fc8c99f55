"""Train one trial: epochs of steps, an evaluation and a checkpoint after each. Knows no Ray.

`fit(trial, report, record, state)` runs in every worker; with no process group it is an ordinary
single-process training. Where the learning rate is constant, as in the original's finetuning, a run continued for more
epochs equals one that had them from the start.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from trainer.cache import ShardCache
from trainer.config import Trial
from trainer.data import Batch, refuse_broken, train_loader
from trainer.distributed import data_parallel, rank, sum_over_workers, world_size
from trainer.double_backprop import name_missing_derivative
from trainer.evaluate import plan as plans
from trainer.evaluate.evaluation import evaluate
from trainer.models import build_model
from trainer.preprocess import Transform
from trainer.schedule import learning_rate
from trainer.shards import evaluation_splits, named_classes, read_shards
from trainer.step import CompiledLoss, RegularizedLoss, set_mode, train_step
from trainer.weights import load_weights

RECORD_EVERY = 10.0  # seconds between two looks at the losses of the steps: each makes the device wait

Metrics = dict[str, float]
State = dict[str, Any]
Report = Callable[[Metrics, State], None]
Record = Callable[[Metrics, int], None]


def prepare_model(trial: Trial, classes: int) -> nn.Module:
    """The trial's model with the weights it starts from."""
    torch.manual_seed(trial.seed)
    model = build_model(trial.model, classes, trial.activation)
    if trial.checkpoint is not None:
        load_weights(model, trial.checkpoint, name=trial.model)
    return model


def make_loss(model: nn.Module, trial: Trial) -> RegularizedLoss:
    """The trial's loss around its model."""
    return (CompiledLoss if trial.compile else RegularizedLoss)(
        model,
        trial.penalty(),
        label_smoothing=trial.label_smoothing,
        batch_norm=trial.batch_norm,
        precision=trial.precision,
        double_backprop=trial.double_backprop,
    )


def make_optimizer(model: nn.Module, trial: Trial) -> torch.optim.SGD:
    """SGD with Nesterov momentum; weight decay only on weights of two and more dimensions."""
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": trial.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=trial.learning_rate, momentum=trial.momentum, nesterov=trial.momentum > 0)


def count_classes(data: str | None) -> int:
    """Number of classes of a shard folder.

    Raises:
        UsageError: if the folder does not say.
    """
    return len(named_classes(data, "train"))


def fit(
    trial: Trial,
    report: Report,
    record: Record = lambda metrics, step: None,
    state: State | None = None,
    device: torch.device | None = None,
    cache: ShardCache | None = None,
    interrupted: Callable[[], bool] = lambda: False,
) -> State | None:
    """Train until `trial.epochs` are done.

    Args:
        trial: what to compute.
        report: called on every worker after each epoch with metrics over all workers and a state to resume from,
            tensors and plain types only.
        record: called on rank 0 with the metrics of every step, in order; those of a continued epoch's earlier steps
            come again.
        state: what an earlier `report` was given, or `fit` returned, to continue from there as if nothing had been.
        device: where to train; the CPU by default.
        cache: of remote shards.
        interrupted: asked after every step, the same answer on all workers; True ends the training at once.

    Returns:
        The state to resume from if it was interrupted within an epoch, else None.

    Raises:
        UsageError: if data, model and settings do not fit together, or too many images are broken.
    """
    device = device or torch.device("cpu")
    train, (val, test) = read_shards(trial.data, "train"), evaluation_splits(trial.data)
    trial = dataclasses.replace(trial, images_per_epoch=trial.images_per_epoch or train.total)
    # GPUs want the channels last; on a CPU a regularized step takes a little longer with it (docs/performance.md).
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    model = prepare_model(trial, count_classes(trial.data)).to(device)
    model = model.to(memory_format=layout)  # type: ignore[call-overload]  # missing in its stubs
    optimizer = make_optimizer(model, trial)
    epoch, step, points = 0, 0, []  # points: losses of the steps of this epoch
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        epoch, step, points = state["epoch"], state["step"], [point.to(device) for point in state["points"]]
    loss = data_parallel(make_loss(model, trial), device)
    steps = trial.steps_per_epoch(world_size())
    images = steps * trial.batch_size * world_size()
    loader = train_loader(
        train,
        Transform(trial.image_size, trial.augment, trial.flip),
        trial.normalization,
        rank=rank(),
        world_size=world_size(),
        seed=trial.seed,
        steps=steps,
        batch_size=trial.batch_size,
        loader_workers=trial.loader_workers,
        device=device,
        cache=cache,
    )
    with loader:
        while epoch < trial.epochs:
            set_mode(model, trial.batch_norm)
            started, batches, before = time.monotonic(), _Timed(loader.epoch(epoch, len(points))), len(points)
            recorded, recorded_at = 0, started
            for batch in batches:
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(trial, step, world_size())
                # Seeded per step, so a resumed run draws what an uninterrupted one would.
                generator = torch.Generator().manual_seed(hash((trial.seed, step, rank())) % 2**63)
                with name_missing_derivative(trial.model):
                    result = train_step(loss, batch, optimizer, clip_norm=trial.clip_norm, generator=generator)
                points.append(
                    torch.stack([result.loss.detach(), result.penalty, result.cross_entropy, result.nonfinite])
                )
                step += 1
                if rank() == 0 and time.monotonic() - recorded_at > RECORD_EVERY:
                    _record(record, points[recorded:], step)
                    recorded, recorded_at = len(points), time.monotonic()
                if len(points) < steps and interrupted():
                    return _state(model, optimizer, epoch, step, points, trial, train.classes)
            epoch += 1
            table = torch.stack(points).double().cpu()
            seconds = time.monotonic() - started
            sums = sum_over_workers(dict(zip(POINT, table.sum(0).tolist(), strict=True)), device)
            # Workers with fewer shards than others begin their next pass earlier.
            refuse_broken(sums["nonfinite_examples"], images, train, passes=images // train.total + 1)
            metrics = {f"train/{name}": sums[name] / (steps * world_size()) for name in POINT[:3]}
            metrics["train/nonfinite_examples"] = sums["nonfinite_examples"]
            metrics["train/images_per_second"] = images * (steps - before) / steps / seconds
            metrics["train/share_waiting_for_data"] = batches.seconds / seconds
            if rank() == 0:
                _record(record, points[recorded:], step)
            points = []
            diverged = not math.isfinite(metrics["train/loss"])
            if diverged:
                metrics |= {"val/accuracy": 0.0, "val/robust_accuracy": 0.0, "val/heatmap_ssim": -1.0}
            else:
                plan = plans.light(trial, val.total) if epoch < trial.epochs else plans.closing(trial)
                metrics |= evaluate(model, val, trial, plan, device, cache)
                if epoch == trial.epochs:  # once, for what val has chosen
                    plan = plans.full(trial, attacked=trial.robust_images) if trial.evaluate == "full" else plan
                    metrics |= evaluate(model, test, trial, plan, device, cache)
            metrics |= {
                "epoch": float(epoch),
                "step": float(step),
                "images_seen": float(step * trial.batch_size * world_size()),
                "diverged": float(diverged),
            }
            report(metrics, _state(model, optimizer, epoch, step, points, trial, train.classes) | {"metrics": metrics})
            if diverged:
                return None
    return None


POINT = ("loss", "penalty", "cross_entropy", "nonfinite_examples")  # what is kept of a step


def _record(record: Record, points: list[Tensor], last: int) -> None:
    """Record steps, the last of which is `last`; one transfer from the device for all of them."""
    if points:
        for step, values in enumerate(torch.stack(points).double().tolist(), start=last - len(points) + 1):
            record({f"step/{name}": value for name, value in zip(POINT[:3], values[:3], strict=True)}, step)


class _Timed:
    """Passes batches on and sums the seconds that were spent waiting for them."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self.batches, self.seconds = batches, 0.0

    def __iter__(self) -> Iterator[Batch]:
        while True:
            asked = time.monotonic()
            batch = next(self.batches, None)
            self.seconds += time.monotonic() - asked
            if batch is None:
                return
            yield batch


def _state(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    epoch: int,
    step: int,
    points: list[Tensor],
    trial: Trial,
    classes: tuple[str, ...],
) -> State:
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": epoch,
        "step": step,
        "points": points,
        "trial": trial.to_dict(),
        "classes": list(classes),  # of the outputs, in order: other data may have them in another
    }
