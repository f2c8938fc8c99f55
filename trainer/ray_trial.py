"""One trial on Ray Train: DDP workers around `fit`, checkpoints in the storage path.

The storage path and the trial's name are its identity: run again with both the same, it continues from its
newest checkpoint.
"""

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from ray import train
from ray.train.torch import TorchTrainer, get_device

from trainer.cache import ShardCache
from trainer.config import Trial
from trainer.distributed import rank
from trainer.fit import Metrics, State, fit
from trainer.models import STATE_FILE


@runtime_checkable
class Recorder(Protocol):
    """Where rank 0 puts its points; must be picklable and neither raise nor wait for a server that is away."""

    def record(self, metrics: Metrics, step: int) -> None:
        """Take the metrics of one step."""
        ...

    def flush(self) -> None:
        """Bring what was taken to where a kill of this process cannot reach it."""
        ...


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where the workers of one trial run.

    Args:
        workers: DDP processes.
        gpus_per_worker: GPUs of each, 0 for CPU and gloo.
        cpus_per_worker: CPUs of each.
        cache: of remote shards, on every node.
    """

    workers: int = 1
    gpus_per_worker: float = 0
    cpus_per_worker: float = 1
    cache: ShardCache = ShardCache()

    def scaling(self) -> train.ScalingConfig:
        """The same in Ray's words."""
        resources: dict[str, float] = {"CPU": self.cpus_per_worker}
        if self.gpus_per_worker:
            resources["GPU"] = self.gpus_per_worker
        return train.ScalingConfig(
            num_workers=self.workers, use_gpu=self.gpus_per_worker > 0, resources_per_worker=resources
        )


def train_worker(config: dict[str, Any]) -> None:
    """What each DDP worker runs."""
    trial = Trial(**config["trial"])
    recorder: Recorder = config["recorder"]

    def report(metrics: Metrics, state: State) -> None:
        if rank() == 0:
            recorder.record({name: value for name, value in metrics.items() if "/" in name}, int(metrics["step"]))
            recorder.flush()  # before the report: the scheduler may kill this process inside it
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if rank() == 0:
                torch.save(state, Path(folder) / STATE_FILE)
                checkpoint = train.Checkpoint.from_directory(folder)
            values = {name: value if math.isfinite(value) else 0.0 for name, value in metrics.items()}
            train.report(
                values | config["extra"],
                checkpoint=checkpoint,
                checkpoint_dir_name=f"epoch_{int(metrics['epoch']):04d}",
            )

    found = train.get_checkpoint()
    state = None
    if found is not None:
        with found.as_directory() as folder:
            state = load_state(Path(folder))
    elif config["start"] is not None:
        state = load_state(Path(config["start"]))
    fit(trial, report, recorder.record, state, get_device(), config["cache"])


def load_state(folder: Path) -> State:
    """The state in a checkpoint folder; nothing in it is executed."""
    return torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True)


def run_trial(
    trial: Trial,
    *,
    placement: Placement,
    storage: str,
    name: str,
    recorder: Recorder,
    start: str | None = None,
    callbacks: list[Any] | None = None,
    extra: dict[str, Any] | None = None,
) -> train.Result:
    """Train to the end, or continue a run of the same storage and name.

    Args:
        trial: what to compute.
        placement: on which workers.
        storage: folder for checkpoints, seen by every node.
        name: of the run inside it.
        recorder: takes the points of rank 0.
        start: checkpoint folder whose state a new run begins with.
        callbacks: of Ray Train.
        extra: added to every report.
    """
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={
            "trial": trial.to_dict(),
            "recorder": recorder,
            "start": start,
            "extra": extra or {},
            "cache": placement.cache,
        },
        scaling_config=placement.scaling(),
        run_config=train.RunConfig(  # type: ignore[call-arg]  # resolved to the class of Train V1
            name=name,
            storage_path=storage,
            callbacks=callbacks or [],
            failure_config=train.FailureConfig(max_failures=2),
            checkpoint_config=train.CheckpointConfig(num_to_keep=2, checkpoint_score_attribute="val/robust_accuracy"),
            logging_config=train.LoggingConfig(log_level="WARNING"),
        ),
    )
    return trainer.fit()
