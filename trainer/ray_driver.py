"""What drives the workers of a trial on Ray Train. It needs no PyTorch, which would be most of such a process's memory.

The storage path and the trial's name are its identity: run again with both the same, it continues from its
newest checkpoint.
"""

from dataclasses import dataclass
from typing import Any

import ray
from ray import train

from trainer.cache import ShardCache

RAY_TRAIN = ("lean", "stock")
TESTED_RAY = "2.60.0"  # that of constraints.txt; `trainer.in_trial` rests on private parts of it
PARTIAL = "partial"  # marks a report that brings a checkpoint within an epoch and no metrics
# What the search, early stopping and the terminal need of an epoch; the rest stays in the trial's log.
REPORTED = (
    "epoch", "step", "images_seen", "diverged", "val/accuracy", "val/robust_accuracy", "val/attacked_examples",
    "train/images_per_second",
)  # fmt: skip


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


def _work(config: dict[str, Any]) -> None:
    from trainer.ray_trial import train_worker  # workers alone need PyTorch

    train_worker(config)


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
    """Train to the end, or continue a run of the same storage and name.

    Args:
        trial: what to compute, `Trial.to_dict()`.
        placement: on which workers.
        storage: folder for checkpoints, seen by every node.
        name: of the run inside it.
        start: checkpoint folder whose state a new run begins with.
        callbacks: of Ray Train.
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
            "start": start,
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
