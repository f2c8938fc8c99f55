"""Train one trial: epochs of steps, an evaluation and a checkpoint after each. Knows no Ray.

`fit(trial, report, record, state)` runs in every worker; with no process group it is an ordinary
single-process training. Where the learning rate is constant, as in the original's finetuning, a run continued for more
epochs equals one that had them from the start.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from trainer.broken_images import refuse_broken
from trainer.cache import ShardCache
from trainer.config import Trial
from trainer.data import Batch, Loader, LoaderOptions, train_loader
from trainer.distributed import data_parallel, rank, sum_over_workers, world_size
from trainer.double_backprop import name_missing_derivative
from trainer.epoch_report import EpochReport
from trainer.evaluate import plan as plans
from trainer.evaluate.measure import measure
from trainer.metrics import (
    LOSSES,
    STEP_LOSSES,
    TEST,
    TRAIN_IMAGES_PER_SECOND,
    TRAIN_LOSS,
    TRAIN_LOSSES,
    TRAIN_NONFINITE_EXAMPLES,
    TRAIN_SHARE_WAITING_FOR_DATA,
    VAL,
    WORST,
    Metrics,
)
from trainer.models import build_model
from trainer.preprocess import Transform
from trainer.schedule import learning_rate
from trainer.shards import Shards, evaluation_splits, named_classes, read_shards
from trainer.step import CompiledLoss, RegularizedLoss, StepResult, set_mode, train_step
from trainer.weights import load_weights

RECORD_EVERY = 10.0  # seconds between two looks at the losses of the steps: each makes the device wait

State = dict[str, Any]
Report = Callable[[EpochReport, State], None]
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


@dataclass(kw_only=True)
class TrainState:
    """What changes while a trial trains; a checkpoint holds all of it.

    Args:
        classes: names of the model's outputs, in order.
        epoch: number of epochs done.
        step: number of steps done, over all epochs.
        losses: the three losses and the number of images left out, of each step of the epoch, on the device.
    """

    trial: Trial
    classes: tuple[str, ...]
    model: nn.Module
    optimizer: torch.optim.Optimizer
    device: torch.device
    epoch: int = 0
    step: int = 0
    losses: list[Tensor] = field(default_factory=list)

    @classmethod
    def start(cls, trial: Trial, classes: tuple[str, ...], device: torch.device) -> "TrainState":
        """The state before the first step."""
        # GPUs want the channels last; on a CPU a regularized step takes a little longer so (docs/performance.md).
        layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        model = prepare_model(trial, count_classes(trial.data)).to(device)
        model = model.to(memory_format=layout)  # type: ignore[call-overload]  # missing in its stubs
        optimizer = make_optimizer(model, trial)
        return cls(trial=trial, classes=classes, model=model, optimizer=optimizer, device=device)

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps of each worker in one epoch."""
        return self.trial.steps_per_epoch(world_size())

    @property
    def images_per_step(self) -> int:
        """Number of images of all workers in one step."""
        return self.trial.batch_size * world_size()

    def take_step(self, result: StepResult) -> None:
        """Count a step and keep its losses."""
        self.losses.append(torch.stack([result.loss.detach(), result.penalty, result.cross_entropy, result.nonfinite]))
        self.step += 1

    def state_dict(self) -> State:
        """Tensors and plain types, from which `load_state_dict` continues."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "points": self.losses,
            "trial": self.trial.to_dict(),
            "classes": list(self.classes),  # other data may have them in another order
        }

    def load_state_dict(self, state: State) -> None:
        """Continue from what `state_dict` gave."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.step = state["epoch"], state["step"]
        self.losses = [losses.to(self.device) for losses in state["points"]]


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
        trial: settings of the training.
        report: callback of every worker after each epoch; it takes the report, over all workers, and a state to resume
            from, tensors and plain types only.
        record: callback of rank 0 for the losses of every step, in order; a continued epoch repeats those of its
            earlier steps.
        state: what an earlier `report` was given, or `fit` returned; training continues there as if uninterrupted.
        device: device of the training; the CPU by default.
        cache: shard cache of this node; None reads remote shards anew each time.
        interrupted: callback after every step, with the same answer on all workers; True ends the training at once.

    Returns:
        The state to resume from if it was interrupted within an epoch, else None.

    Raises:
        UsageError: if data, model and settings do not fit together, or too many images are broken.
    """
    device = device or torch.device("cpu")
    train, (val, test) = read_shards(trial.data, "train"), evaluation_splits(trial.data)
    trial = dataclasses.replace(trial, images_per_epoch=trial.images_per_epoch or train.total)
    training = TrainState.start(trial, train.classes, device)
    if state is not None:
        training.load_state_dict(state)
    loss = data_parallel(make_loss(training.model, trial), device)
    transform = Transform(trial.image_size, trial.augment, trial.flip)
    options = LoaderOptions.of_worker(trial, device, cache)
    with train_loader(train, transform, options, seed=trial.seed, steps=training.steps_per_epoch) as loader:
        while training.epoch < trial.epochs:
            metrics = train_epoch(training, loss, loader, train, record, interrupted)
            if metrics is None:
                return training.state_dict()
            diverged = not math.isfinite(metrics[TRAIN_LOSS])
            found, withstood = (WORST, {}) if diverged else evaluate_epoch(training, val, test, cache)
            epoch = EpochReport(
                epoch=training.epoch,
                step=training.step,
                images_seen=training.step * training.images_per_step,
                diverged=diverged,
                metrics=metrics | found,
                withstood=withstood,
            )
            report(epoch, training.state_dict() | {"metrics": epoch.to_dict()})
            if diverged:
                return None
    return None


def train_epoch(
    training: TrainState,
    loss: nn.Module,
    loader: Loader,
    train: Shards,
    record: Record,
    interrupted: Callable[[], bool],
) -> Metrics | None:
    """Take the steps that are left of an epoch.

    Args:
        training: state before and, changed in place, after.
        loss: loss around the model, DDP around both where there are several workers.
        loader: batches of this worker.

    Returns:
        Means over all workers and steps of the epoch; None if it was interrupted before its end.

    Raises:
        UsageError: if too many images are broken.
    """
    trial, steps, earlier = training.trial, training.steps_per_epoch, len(training.losses)
    set_mode(training.model, trial.batch_norm)
    started = time.monotonic()
    batches, records = _Timed(loader.epoch(training.epoch, earlier)), _Records(record, training)
    for batch in batches:
        for group in training.optimizer.param_groups:
            group["lr"] = learning_rate(trial, training.step, world_size())
        # Seeded per step, so a resumed run draws what an uninterrupted one would.
        generator = torch.Generator().manual_seed(hash((trial.seed, training.step, rank())) % 2**63)
        with name_missing_derivative(trial.model):
            result = train_step(loss, batch, training.optimizer, clip_norm=trial.clip_norm, generator=generator)
        training.take_step(result)
        records.write_if_due()
        if len(training.losses) < steps and interrupted():
            return None
    sums = torch.stack(training.losses).double().cpu().sum(0).tolist()
    seconds = time.monotonic() - started
    records.write()
    training.epoch, training.losses = training.epoch + 1, []
    totals = sum_over_workers(dict(zip((*TRAIN_LOSSES, TRAIN_NONFINITE_EXAMPLES), sums, strict=True)), training.device)
    images = steps * training.images_per_step
    # Workers with fewer shards than others begin their next pass earlier.
    refuse_broken(totals[TRAIN_NONFINITE_EXAMPLES], images, train, passes=images // train.total + 1)
    return {name: totals[name] / (steps * world_size()) for name in TRAIN_LOSSES} | {
        TRAIN_NONFINITE_EXAMPLES: totals[TRAIN_NONFINITE_EXAMPLES],
        TRAIN_IMAGES_PER_SECOND: images * (steps - earlier) / steps / seconds,
        TRAIN_SHARE_WAITING_FOR_DATA: batches.seconds / seconds,
    }


def evaluate_epoch(
    training: TrainState, val: Shards, test: Shards, cache: ShardCache | None
) -> tuple[Metrics, dict[str, str]]:
    """Evaluate on val after an epoch; after the last one on all of val and, for the final figures, on test.

    Returns:
        The metrics and, after the last epoch, which examples of each split withstood.
    """
    trial, model, device = training.trial, training.model, training.device
    if training.epoch < trial.epochs:
        return measure(model, val, trial, plans.light(trial, val.total), device, cache).metrics, {}
    plan = plans.closing(trial)
    on_val = measure(model, val, trial, plan, device, cache)
    if trial.evaluate == "full":
        plan = plans.full(trial, attacked=trial.robust_images)
    on_test = measure(model, test, trial, plan, device, cache)
    return on_val.metrics | on_test.metrics, {VAL: on_val.withstood, TEST: on_test.withstood}


class _Records:
    """Passes the losses of an epoch's steps to `record`, on rank 0; one transfer from the device for several steps."""

    def __init__(self, record: Record, training: TrainState) -> None:
        self._record, self._training = record, training
        self._written, self._time = 0, time.monotonic()

    def write_if_due(self) -> None:
        if time.monotonic() - self._time > RECORD_EVERY:
            self.write()
            self._time = time.monotonic()

    def write(self) -> None:
        losses = self._training.losses[self._written :]
        self._written += len(losses)
        if rank() == 0 and losses:
            first = self._training.step - len(losses) + 1
            for step, values in enumerate(torch.stack(losses).double().tolist(), start=first):
                self._record(dict(zip(STEP_LOSSES, values[: len(LOSSES)], strict=True)), step)


class _Timed:
    """Passes batches on and sums the seconds spent waiting for them."""

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
