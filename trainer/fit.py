"""Train one trial: epochs of steps, an evaluation and a checkpoint after each. Knows no Ray.

`fit(trial, report, record, state)` runs in every worker; with no process group it is an ordinary
single-process training. The learning rate is constant, as in the original's finetuning, so that a run
continued for more epochs equals one that had them from the start.
"""

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from trainer.config import Trial, UsageError
from trainer.data import train_loader
from trainer.distributed import data_parallel, rank, sum_over_workers, world_size
from trainer.double_backprop import name_missing_derivative
from trainer.evaluate import evaluate
from trainer.models import build_model, load_weights
from trainer.shards import read_shards
from trainer.step import CompiledLoss, RegularizedLoss, set_mode, train_step

Metrics = dict[str, float]
State = dict[str, Any]
Report = Callable[[Metrics, State], None]
Record = Callable[[Metrics, int], None]


def prepare_model(trial: Trial, classes: int) -> nn.Module:
    """The trial's model with the weights it starts from."""
    torch.manual_seed(trial.seed)
    model = build_model(trial.model, classes, trial.activation)
    if trial.checkpoint is not None:
        load_weights(model, trial.checkpoint)
    return model


def make_loss(model: nn.Module, trial: Trial) -> RegularizedLoss:
    """The trial's loss around its model."""
    return (CompiledLoss if trial.compile else RegularizedLoss)(
        model,
        trial.penalty(),
        label_smoothing=trial.label_smoothing,
        batch_norm=trial.batch_norm,
        precision=trial.precision,
    )


def make_optimizer(model: nn.Module, trial: Trial) -> torch.optim.SGD:
    """SGD with Nesterov momentum; weight decay only on weights of two and more dimensions."""
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": trial.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=trial.learning_rate, momentum=trial.momentum, nesterov=trial.momentum > 0)


def count_classes(data: str) -> int:
    """Number of classes of a shard folder.

    Raises:
        UsageError: if the folder does not say.
    """
    classes = read_shards(data, "train").classes
    if not classes:
        raise UsageError(f"--data {data}: neither meta.json nor classes.json there names the classes")
    return len(classes)


def fit(
    trial: Trial,
    report: Report,
    record: Record = lambda metrics, step: None,
    state: State | None = None,
    device: torch.device | None = None,
) -> None:
    """Train until `trial.epochs` are done.

    Args:
        trial: what to compute.
        report: called on every worker after each epoch with metrics over all workers and a state to resume from,
            tensors and plain types only.
        record: called on rank 0 with the metrics of every step.
        state: what an earlier `report` was given, to continue from there.
        device: where to train; the CPU by default.
    """
    device = device or torch.device("cpu")
    train, val = read_shards(trial.data, "train"), read_shards(trial.data, "val")
    # GPUs want the channels last; on a CPU a regularized step takes a little longer with it (docs/performance.md).
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    model = prepare_model(trial, count_classes(trial.data)).to(device)
    model = model.to(memory_format=layout)  # type: ignore[call-overload]  # missing in its stubs
    optimizer = make_optimizer(model, trial)
    epoch, step = 0, 0
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        epoch, step = state["epoch"], state["step"]
    loss = data_parallel(make_loss(model, trial), device)
    steps = trial.steps_per_epoch(world_size())
    loader = train_loader(
        train,
        rank=rank(),
        world_size=world_size(),
        seed=trial.seed,
        steps=steps,
        batch_size=trial.batch_size,
        loader_workers=trial.loader_workers,
    )
    while epoch < trial.epochs:
        started = time.monotonic()
        set_mode(model, trial.batch_norm)
        results = []
        for batch in loader.epoch(epoch):
            # Seeded per step, so a resumed run draws what an uninterrupted one would.
            generator = torch.Generator().manual_seed(hash((trial.seed, step, rank())) % 2**63)
            with name_missing_derivative(trial.model):
                result = train_step(loss, batch.to(device), optimizer, clip_norm=trial.clip_norm, generator=generator)
            results.append(torch.stack([result.loss.detach(), result.penalty, result.cross_entropy, result.nonfinite]))
            step += 1
        epoch += 1
        # One transfer an epoch: reading every step's loss would make the device wait for the host.
        points = torch.stack(results).double().cpu()
        seconds = time.monotonic() - started
        names = ("loss", "penalty", "cross_entropy", "nonfinite_examples")
        sums = sum_over_workers(dict(zip(names, points.sum(0).tolist(), strict=True)), device)
        metrics = {f"train/{name}": sums[name] / (steps * world_size()) for name in names[:3]}
        metrics["train/nonfinite_examples"] = sums["nonfinite_examples"]
        metrics["train/images_per_second"] = steps * trial.batch_size * world_size() / seconds
        if rank() == 0:
            for number, values in enumerate(points[:, :3].tolist(), start=step - steps + 1):
                record({f"step/{name}": value for name, value in zip(names, values, strict=False)}, number)
        diverged = not math.isfinite(metrics["train/loss"])
        if diverged:
            metrics |= {"val/accuracy": 0.0, "val/robust_accuracy": 0.0, "val/heatmap_ssim": -1.0}
        else:
            metrics |= evaluate(model, val, trial, device)
            if epoch == trial.epochs and _has_test(trial.data):
                metrics |= evaluate(model, read_shards(trial.data, "test"), trial, device)
        metrics |= {
            "epoch": float(epoch),
            "step": float(step),
            "images_seen": float(step * trial.batch_size * world_size()),
            "diverged": float(diverged),
        }
        report(metrics, _state(model, optimizer, epoch, step, trial))
        if diverged:
            return


def _has_test(data: str) -> bool:
    try:
        read_shards(data, "test")
    except UsageError:
        return False
    return True


def _state(model: nn.Module, optimizer: torch.optim.Optimizer, epoch: int, step: int, trial: Trial) -> State:
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": epoch,
        "step": step,
        "trial": trial.to_dict(),
    }
