"""Drive the workers of a trial on Ray Train. It needs no PyTorch, which would be most of such a process's memory.

The storage path and the trial's name are its identity: run again with both the same, it continues from its
newest checkpoint.
"""

from dataclasses import dataclass
from typing import Any

from ray import train

from trainer.cache import ShardCache
from trainer.metrics import VAL_ROBUST_ACCURACY
from trainer.placement import Placement


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """What each worker of a trial is given.

    Args:
        trial: configuration to train, `Trial.to_dict()`.
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
        storage: folder for checkpoints, seen by every node.
        start: checkpoint folder whose state a new run begins with.
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
        scaling_config=train.ScalingConfig(
            num_workers=placement.workers, use_gpu=placement.gpus > 0, resources_per_worker=placement.bundle()
        ),
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
