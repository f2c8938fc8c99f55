"""One trial on Ray Train: DDP workers around `fit`, checkpoints in the storage path.

The storage path and the trial's name are its identity: run again with both the same, it continues from its
newest checkpoint.
"""

import contextlib
import json
import math
import os
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import ray
import torch
from ray import train
from ray.train.torch import get_device

from trainer.cache import ShardCache
from trainer.checkpoints import load_newest, load_state, save_state
from trainer.config import Trial, UsageError
from trainer.distributed import rank, sum_over_workers
from trainer.evaluate.gallery import gallery_of
from trainer.fit import Metrics, State, fit
from trainer.in_trial import LeanTrainer
from trainer.load import watched
from trainer.locations import read_json, whole_file

IN_PLACE = train.CheckpointUploadMode.NO_UPLOAD
FAILURE_FILE = "failure.json"
GALLERY = "gallery.png"
PARTIAL = "partial"  # marks a report that brings a checkpoint within an epoch and no metrics
WORST: dict[str, Any] = {"val/accuracy": 0.0, "val/robust_accuracy": 0.0, "val/heatmap_ssim": -1.0}


@runtime_checkable
class Recorder(Protocol):
    """Where rank 0 puts its points, from any thread; must be picklable and neither raise nor wait for a server."""

    def configured(self, params: dict[str, Any]) -> None:
        """Take what the worker trains with."""
        ...

    def record(self, metrics: Metrics, step: int) -> None:
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
    """

    workers: int = 1
    gpus_per_worker: float = 0
    cpus_per_worker: float = 1
    cache: ShardCache = ShardCache()

    def bundle(self) -> dict[str, float]:
        """What one worker takes, in Ray's words."""
        gpus = {"GPU": float(self.gpus_per_worker)} if self.gpus_per_worker else {}
        return {"CPU": float(self.cpus_per_worker), **gpus}

    def scaling(self) -> train.ScalingConfig:
        """All of them, in Ray's words."""
        return train.ScalingConfig(
            num_workers=self.workers, use_gpu=self.gpus_per_worker > 0, resources_per_worker=self.bundle()
        )


def train_worker(config: dict[str, Any]) -> None:
    """What each DDP worker runs: `fit`, from the newest good checkpoint to the end or to an error.

    An error that would only come again is noted in the trial's folder; the workers that Ray then starts once more
    report it as the trial's result and train no further.
    """
    folder = config["folder"]
    failure = failure_of(folder)
    if failure is not None:
        train.report(WORST | {"failed": failure} | config["extra"])
        return
    try:
        _train(config)
    except Exception as error:
        if _would_come_again(error):
            with contextlib.suppress(UsageError), whole_file(f"{folder}/{FAILURE_FILE}") as stream:
                trace = "".join(traceback.format_exception(error))
                stream.write(json.dumps({"reason": _reason(error), "trace": trace}).encode())
        raise


def _train(config: dict[str, Any]) -> None:
    trial, folder, device = Trial.from_dict(config["trial"]), config["folder"], get_device()
    recorder: Recorder = config["recorder"]
    newest: str | None = None  # checkpoint

    def save(state: State, name: str) -> train.Checkpoint | None:
        """Ray takes a checkpoint from where it lies: nothing is copied, and a full disk ends no training."""
        nonlocal newest
        try:
            save_state(state, f"{folder}/{name}")
        except UsageError as error:
            print(f"{error}; training goes on, the checkpoint before stays the newest")
            return None
        newest = f"{folder}/{name}"
        storage = train.get_context().get_storage()
        return train.Checkpoint(f"{storage.experiment_fs_path}/{name}", storage.storage_filesystem)

    def tell(metrics: Metrics, checkpoint: train.Checkpoint | None = None) -> None:
        values = {name: value if math.isfinite(value) else 0.0 for name, value in metrics.items()}
        known = {"checkpoint_folder": newest} if newest else {}
        known["digest"] = trial.digest()  # of what this worker trains, whatever was asked
        train.report(values | known | config["extra"], checkpoint, checkpoint_upload_mode=IN_PLACE)

    def report(metrics: Metrics, state: State) -> None:
        checkpoint = None
        if rank() == 0:
            recorder.record({name: value for name, value in metrics.items() if "/" in name}, int(metrics["step"]))
            if metrics["epoch"] == trial.epochs and not metrics["diverged"]:
                recorder.attach(_gallery(trial, state, device, config["cache"]))
            recorder.flush()  # before the report: the scheduler may kill this process inside it
            checkpoint = save(state, f"epoch_{int(metrics['epoch']):04d}")
        tell(metrics, checkpoint)

    if rank() == 0:
        recorder.configured(trial.to_dict() | {"digest": trial.digest()})
    state = None
    found = train.get_checkpoint()
    if found is not None:
        state, name = load_newest(folder, Path(found.path).name)
        newest = f"{folder}/{name}"
        ended = state.get("metrics")
        if ended and (ended["epoch"] == trial.epochs or ended["diverged"]):
            tell(ended)  # whoever drove this trial was killed before it could keep this
            return
    elif config["start"] is not None:
        state = load_state(config["start"])
    interruption = _Interruption(config["switch"], device)
    with watched(recorder.record, device) if rank() == 0 else contextlib.nullcontext():
        while True:
            state = fit(trial, report, recorder.record, state, device, config["cache"], interruption.due)
            if state is None:
                return
            checkpoint = None
            if rank() == 0:
                checkpoint = save(state, f"epoch_{state['epoch']:04d}_step_{state['step']:08d}")
            train.report(WORST | {PARTIAL: True}, checkpoint, checkpoint_upload_mode=IN_PLACE)
            if interruption.final:
                if rank() == 0:
                    ray.get(config["switch"].save.remote(config["name"]))
                while True:  # the driver ends this process
                    time.sleep(1)


def _gallery(trial: Trial, state: State, device: torch.device, cache: ShardCache) -> dict[str, str | bytes]:
    """Heatmaps of the trained model as a file; none where they cannot be drawn, which is no reason to fail."""
    try:
        return {GALLERY: gallery_of(trial, state["model"], device, cache)}
    except Exception as error:
        print(f"no gallery: {type(error).__name__}: {error}")
        return {}


def failure_of(folder: str) -> str | None:
    """Why a trial failed, if trying it again would be useless.

    Args:
        folder: of the trial's checkpoints.
    """
    failure = read_json(f"{folder}/{FAILURE_FILE}")
    return failure["reason"] if failure else None


class _Interruption:
    """Whether to save the state now, within an epoch: because this node goes away, or because the sweep stops.

    Asked after every step, it looks at every `EVERY`-th, so that all workers look, and agree, at the same ones.
    """

    EVERY = 10

    def __init__(self, switch: Any, device: torch.device) -> None:
        self.switch, self.device = switch, device
        self.steps, self.final, self.noticed = 0, False, False
        self.watches = os.environ.get("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1") != "0"

    def due(self) -> bool:
        self.steps += 1
        if self.steps % self.EVERY:
            return False
        asked = rank() == 0 and self.switch is not None and ray.get(self.switch.asked.remote())
        self.final = sum_over_workers({"asked": float(asked)}, self.device)["asked"] > 0
        notice = self.watches and train.get_preemption_info() is not None
        first, self.noticed = notice and not self.noticed, notice
        return self.final or first


def _would_come_again(error: Exception) -> bool:
    """Whether trying again is useless: not where a worker, a node, a connection or a disk was lost."""
    if isinstance(error, OSError | torch.distributed.DistError | ray.exceptions.RayError):
        return False
    return not any(word in str(error).lower() for word in ("gloo", "nccl", "connection"))


def _reason(error: Exception) -> str:
    """One line for the ranking and the terminal."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
        return f"out of memory ({_first_line(error)}); lower --batch-size or --image-size, or use --precision bfloat16"
    if isinstance(error, UsageError):
        return _first_line(error, 500)  # whose remedy stands at its end
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {_first_line(error)} ({Path(where.filename).name}, line {where.lineno})"


def _first_line(error: Exception, length: int = 200) -> str:
    return str(error).strip().partition("\n")[0][:length]


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
    switch: Any = None,
    trainer: type[LeanTrainer] = LeanTrainer,
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
        switch: handle of a `StopSwitch` to look at.
        trainer: `InTrialTrainer` in a trial of Tune.
    """
    run = trainer(
        train_worker,
        train_loop_config={
            "trial": trial.to_dict(),
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
