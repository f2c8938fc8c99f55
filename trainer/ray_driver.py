"""Drive the workers of a trial on Ray Train. It needs no PyTorch, which would be most of such a process's memory.

The storage path and the trial's name are its identity: run again with both the same, it continues from its
newest checkpoint.
"""

from dataclasses import dataclass
from typing import Any

import ray
from ray import train

from trainer.cache import ShardCache
from trainer.metrics import VAL_ROBUST_ACCURACY

RAY_TRAIN = ("lean", "stock")
TESTED_RAY = "2.60.0"  # that of constraints.txt; `trainer.lean_trainer` rests on private parts of it


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where the workers of one trial run.

    Args:
        workers: number of DDP processes.
        gpus_per_worker: number of GPUs of each, 0 for CPU and gloo.
        cpus_per_worker: number of CPUs of each.
        cache: shard cache of every node.
        ray_train: `lean` (fewer processes, which go on to the next trial; with the Ray that is tested) or `stock`.
    """

    workers: int = 1
    gpus_per_worker: float = 0
    cpus_per_worker: float = 1
    cache: ShardCache = ShardCache()
    ray_train: str = "lean"

    @property
    def lean(self) -> bool:
        """Whether Ray Train runs as `trainer.lean_trainer` changes it; with another Ray than the tested one never."""
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


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """What each worker of a trial is given.

    Args:
        trial: configuration to train, `Trial.to_dict()`.
        folder: folder of the trial's checkpoints and log.
        name: name of the trial in the storage.
        cache: shard cache of the node.
        start: checkpoint folder whose state a new run begins with.
        switch: handle of the `StopSwitch` to look at.
    """

    trial: dict[str, Any]
    folder: str
    name: str
    cache: ShardCache
    start: str | None = None
    switch: Any = None


def _work(config: dict[str, WorkerConfig]) -> None:
    from trainer.ray_trial import train_worker  # workers alone need PyTorch

    train_worker(config["worker"])


def run_trial(
    trial: dict[str, Any],
    *,
    placement: Placement,
    storage: str,
    name: str,
    start: str | None = None,
    callbacks: list[Any] | None = None,
    switch: Any = None,
    in_tune: bool = False,
) -> train.Result:
    """Train to the end, or continue the run of the same name in the storage.

    Args:
        trial: configuration to train, `Trial.to_dict()`.
        placement: where its workers run.
        storage: folder for checkpoints, seen by every node.
        name: name of the run inside it.
        start: checkpoint folder whose state a new run begins with.
        callbacks: callbacks of Ray Train.
        switch: handle of a `StopSwitch` to look at.
        in_tune: whether this is the process of a Tune trial; where Ray Train is lean, with a bundle for each worker in
            its placement group.
    """
    worker = WorkerConfig(
        trial=trial, folder=f"{storage}/{name}", name=name, cache=placement.cache, start=start, switch=switch
    )
    run = _trainer(placement, in_tune)(
        _work,
        train_loop_config={"worker": worker},
        scaling_config=placement.scaling(),
        run_config=train.RunConfig(  # type: ignore[call-arg]  # resolved to the class of Train V1
            name=name,
            storage_path=storage,
            callbacks=callbacks or [],
            failure_config=train.FailureConfig(max_failures=2),
            checkpoint_config=train.CheckpointConfig(num_to_keep=2, checkpoint_score_attribute=VAL_ROBUST_ACCURACY),
            logging_config=train.LoggingConfig(log_level="WARNING"),
        ),
    )
    return run.fit()


def _trainer(placement: Placement, in_tune: bool) -> Any:
    """The class that trains; imported here, as each has something in it that the others do without."""
    if not placement.lean:
        from ray.train.torch import TorchTrainer

        return TorchTrainer
    from trainer.lean_trainer import InTrialTrainer, LeanTrainer

    return InTrialTrainer if in_tune else LeanTrainer
