"""What drives the workers of a trial on Ray Train. It needs no PyTorch, which would be most of such a process's memory.

The storage path and the trial's name are its identity: run again with both the same, it continues from its
newest checkpoint.
"""

from typing import Any

from ray import train

from trainer.placement import Placement

PARTIAL = "partial"  # marks a report that brings a checkpoint within an epoch and no metrics
# What the search, early stopping and the terminal need of an epoch; the rest stays in the trial's log.
REPORTED = (
    "epoch", "step", "images_seen", "diverged", "val/accuracy", "val/robust_accuracy", "val/attacked_examples",
    "train/images_per_second",
)  # fmt: skip


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
        scaling_config=train.ScalingConfig(
            num_workers=placement.workers, use_gpu=placement.gpus > 0, resources_per_worker=placement.bundle()
        ),
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
