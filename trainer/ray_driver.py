"""What drives the workers of a trial on Ray Train. It needs no PyTorch, which would be most of such a process's memory.

The storage path and the trial's name are its identity: run again with both the same, it continues from its
newest checkpoint.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import ray
from ray import train

from trainer.cache import ShardCache
from trainer.locations import read_json

RAY_TRAIN = ("lean", "stock")
TESTED_RAY = "2.60.0"  # that of constraints.txt; `trainer.in_trial` rests on private parts of it
FAILURE_FILE = "failure.json"
PARTIAL = "partial"  # marks a report that brings a checkpoint within an epoch and no metrics


@runtime_checkable
class Recorder(Protocol):
    """Where rank 0 puts its points, from any thread; must be picklable and neither raise nor wait for a server."""

    def configured(self, params: dict[str, Any]) -> None:
        """Take what the worker trains with."""
        ...

    def record(self, metrics: dict[str, float], step: int) -> None:
        """Take the metrics of one step."""
        ...

    def attach(self, files: dict[str, str | bytes]) -> None:
        """Take files to be kept under these names."""
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
        ray_train: `lean` (fewer processes, which go on to the next trial; with the Ray that is tested) or `stock`.
    """

    workers: int = 1
    gpus_per_worker: float = 0
    cpus_per_worker: float = 1
    cache: ShardCache = ShardCache()
    ray_train: str = "lean"

    @property
    def lean(self) -> bool:
        """Whether Ray Train runs as `trainer.in_trial` changes it; with another Ray than the tested one never."""
        return self.ray_train == "lean" and ray.__version__ == TESTED_RAY

    def bundle(self) -> dict[str, float]:
        """What one worker takes, in Ray's words."""
        gpus = {"GPU": float(self.gpus_per_worker)} if self.gpus_per_worker else {}
        return {"CPU": float(self.cpus_per_worker), **gpus}

    def scaling(self) -> train.ScalingConfig:
        """All of them, in Ray's words."""
        return train.ScalingConfig(
            num_workers=self.workers, use_gpu=self.gpus_per_worker > 0, resources_per_worker=self.bundle()
        )


def failure_of(folder: str) -> str | None:
    """Why a trial failed, if trying it again would be useless.

    Args:
        folder: of the trial's checkpoints.
    """
    failure = read_json(f"{folder}/{FAILURE_FILE}")
    return failure["reason"] if failure else None


def _work(config: dict[str, Any]) -> None:
    from trainer.ray_trial import train_worker  # workers alone need PyTorch

    train_worker(config)


def run_trial(
    trial: dict[str, Any],
    *,
    placement: Placement,
    storage: str,
    name: str,
    recorder: Recorder,
    start: str | None = None,
    callbacks: list[Any] | None = None,
    extra: dict[str, Any] | None = None,
    switch: Any = None,
    in_tune: bool = False,
) -> train.Result:
    """Train to the end, or continue a run of the same storage and name.

    Args:
        trial: what to compute, `Trial.to_dict()`.
        placement: on which workers.
        storage: folder for checkpoints, seen by every node.
        name: of the run inside it.
        recorder: takes the points of rank 0.
        start: checkpoint folder whose state a new run begins with.
        callbacks: of Ray Train.
        extra: added to every report.
        switch: handle of a `StopSwitch` to look at.
        in_tune: whether this is the process of a Tune trial; where Ray Train is lean, with a bundle for each worker in
            its placement group.
    """
    run = _trainer(placement, in_tune)(
        _work,
        train_loop_config={
            "trial": trial,
            "folder": f"{storage}/{name}",
            "name": name,
            "switch": switch,
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
    return run.fit()


def _trainer(placement: Placement, in_tune: bool) -> Any:
    """The class that trains; imported here, as each has something in it that the others do without."""
    if not placement.lean:
        from ray.train.torch import TorchTrainer

        return TorchTrainer
    from trainer.in_trial import InTrialTrainer, LeanTrainer

    return InTrialTrainer if in_tune else LeanTrainer
