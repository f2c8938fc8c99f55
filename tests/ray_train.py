"""A worker of a trial in this process: Ray Train is replaced by what it would answer."""

from types import SimpleNamespace

import torch


class Pointer:
    """A checkpoint as Ray Train has it: a place."""

    def __init__(self, path, filesystem):
        self.path = path


def train_worker(monkeypatch, trial, folder, checkpoint=None):
    """Run a worker, told to continue from a checkpoint; what it reports."""
    from trainer import ray_trial
    from trainer.cache import ShardCache
    from trainer.ray_driver import WorkerConfig

    reports, storage = [], SimpleNamespace(experiment_fs_path="/", storage_filesystem=None)
    train = SimpleNamespace(
        get_checkpoint=lambda: Pointer(checkpoint, None) if checkpoint else None,
        get_context=lambda: SimpleNamespace(get_storage=lambda: storage),
        Checkpoint=Pointer,
        report=lambda values, *rest, **more: reports.append(values),
    )
    monkeypatch.setattr(ray_trial, "train", train)
    monkeypatch.setattr(ray_trial, "get_device", lambda: torch.device("cpu"))
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    ray_trial.train_worker(WorkerConfig(trial=trial.to_dict(), folder=str(folder), name="t", cache=ShardCache()))
    return reports
