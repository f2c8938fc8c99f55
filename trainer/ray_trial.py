"""One worker of a trial on Ray Train: DDP around `fit`, checkpoints in the storage path."""

import contextlib
import json
import logging
import math
import os
import time
import traceback
from pathlib import Path
from typing import Any

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
from trainer.load import watched
from trainer.locations import whole_file
from trainer.ray_driver import PARTIAL, REPORTED
from trainer.trial_log import FAILURE, GALLERY, TrialLog, failure_of

logger = logging.getLogger(__name__)

IN_PLACE = train.CheckpointUploadMode.NO_UPLOAD
WORST: dict[str, Any] = {"val/accuracy": 0.0, "val/robust_accuracy": 0.0, "val/heatmap_ssim": -1.0}


def train_worker(config: dict[str, Any]) -> None:
    """What each DDP worker runs: `fit`, from the newest good checkpoint to the end or to an error.

    An error that would only come again is noted in the trial's folder; the workers that Ray then starts once more
    report it as the trial's result and train no further.
    """
    folder = config["folder"]
    failure = failure_of(folder)
    if failure is not None:
        train.report(WORST | {"failed": failure})
        return
    try:
        _train(config)
    except Exception as error:
        if _would_come_again(error):
            with contextlib.suppress(UsageError), whole_file(f"{folder}/{FAILURE}") as stream:
                trace = "".join(traceback.format_exception(error))
                stream.write(json.dumps({"reason": _reason(error), "trace": trace}).encode())
        raise


def _train(config: dict[str, Any]) -> None:
    trial, folder, device = Trial.from_dict(config["trial"]), config["folder"], get_device()
    newest: str | None = None  # checkpoint

    def save(state: State, name: str) -> train.Checkpoint | None:
        """Ray takes a checkpoint from where it lies: nothing is copied, and a full disk ends no training."""
        nonlocal newest
        try:
            save_state(state, f"{folder}/{name}")
        except UsageError as error:
            logger.warning("%s; training goes on, the checkpoint before stays the newest", error)
            return None
        newest = f"{folder}/{name}"
        storage = train.get_context().get_storage()
        return train.Checkpoint(f"{storage.experiment_fs_path}/{name}", storage.storage_filesystem)

    def tell(metrics: Metrics, checkpoint: train.Checkpoint | None = None) -> None:
        told = {name: metrics[name] for name in REPORTED if name in metrics}
        values: dict[str, Any] = {name: value if math.isfinite(value) else 0.0 for name, value in told.items()}
        if newest is not None:
            values["checkpoint_folder"] = newest
        values["digest"] = trial.digest()  # of what this worker trains, whatever was asked
        train.report(values, checkpoint, checkpoint_upload_mode=IN_PLACE)

    def report(metrics: Metrics, state: State) -> None:
        checkpoint = None
        if log is not None:
            if metrics["epoch"] == trial.epochs and not metrics["diverged"]:
                _draw_gallery(log, trial, state, device, config["cache"])
            log.report(_named(metrics), int(metrics["step"]))
            checkpoint = save(state, f"epoch_{int(metrics['epoch']):04d}")
        tell(metrics, checkpoint)

    state = None
    found = train.get_checkpoint()
    if found is not None:
        state, name = load_newest(folder, Path(found.path).name)
        newest = f"{folder}/{name}"
        ended = state.get("metrics")
        if ended and (ended["epoch"] == trial.epochs or ended["diverged"]):
            if rank() == 0:  # storage may have taken the checkpoint and not the report
                TrialLog(folder, trial.digest(), int(ended["epoch"])).report(_named(ended), int(ended["step"]))
            tell(ended)  # whoever drove this trial was killed before it could keep this
            return
    elif config["start"] is not None:
        state = load_state(config["start"])
    log = TrialLog(folder, trial.digest(), epoch=state["epoch"] + 1 if state else 1) if rank() == 0 else None
    if log is not None:
        log.configured(trial.to_dict())
    record = log.record if log is not None else _ignore
    interruption = _Interruption(config["switch"], device)
    with contextlib.ExitStack() as held:
        if log is not None:
            held.enter_context(log.writing())
            held.enter_context(watched(log.record, device))
        while True:
            state = fit(trial, report, record, state, device, config["cache"], interruption.due)
            if state is None:
                return
            checkpoint = None
            if log is not None:
                log.flush()
                checkpoint = save(state, f"epoch_{state['epoch']:04d}_step_{state['step']:08d}")
            train.report(WORST | {PARTIAL: True}, checkpoint, checkpoint_upload_mode=IN_PLACE)
            if interruption.final:
                if rank() == 0:
                    ray.get(config["switch"].save.remote(config["name"]))
                while True:  # the driver ends this process
                    time.sleep(1)


def _named(metrics: Metrics) -> Metrics:
    """Those that are measurements, `split/name`."""
    return {name: value for name, value in metrics.items() if "/" in name}


def _ignore(metrics: Metrics, step: int) -> None:
    """The other ranks have nothing to say."""


def _draw_gallery(log: TrialLog, trial: Trial, state: State, device: torch.device, cache: ShardCache) -> None:
    """Keep heatmaps of the trained model; none where they cannot be drawn, which is no reason to fail."""
    try:
        log.keep(GALLERY, gallery_of(trial, state["model"], device, cache))
    except Exception as error:
        logger.warning("no gallery: %s: %s", type(error).__name__, error)


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
