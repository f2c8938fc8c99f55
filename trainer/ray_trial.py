"""One worker of a trial on Ray Train: DDP around `fit`, checkpoints in the storage path."""

import contextlib
import json
import logging
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
from trainer.checkpoint_io import load_newest, load_state, save_state
from trainer.config import Trial, UsageError
from trainer.distributed import name_lost_workers, rank, sum_over_workers
from trainer.epoch_report import EpochReport, failed_report, partial_report
from trainer.evaluate.gallery import gallery_of
from trainer.fit import State, fit
from trainer.locations import whole_file
from trainer.metrics import Metrics
from trainer.ray_driver import WorkerConfig
from trainer.retryable import RetryableError
from trainer.system_metrics import record_system_metrics
from trainer.trial_log import FAILURE, GALLERY, TrialLog, failure_of

logger = logging.getLogger(__name__)

NO_UPLOAD = train.CheckpointUploadMode.NO_UPLOAD  # checkpoints are in the storage already


def train_worker(config: WorkerConfig) -> None:
    """What each DDP worker runs: `fit`, from the newest intact checkpoint to the end or to an error.

    A non-retryable error is written into the trial's folder; the workers that Ray then starts once more report it as
    the trial's result and train no further.
    """
    failure = failure_of(config.folder)
    if failure is not None:
        train.report(failed_report(failure))
        return
    try:
        with name_lost_workers():
            _Worker(config, get_device()).run()
    except Exception as error:
        if not is_retryable(error):
            with contextlib.suppress(UsageError), whole_file(f"{config.folder}/{FAILURE}") as stream:
                trace = "".join(traceback.format_exception(error))
                stream.write(json.dumps({"reason": describe_failure(error), "trace": trace}).encode())
        raise


class _Worker:
    """The training of one worker, and what it reports and saves."""

    def __init__(self, config: WorkerConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self.trial = Trial.from_dict(config.trial)
        self.newest: str | None = None  # folder of the newest checkpoint
        self.log: TrialLog | None = None  # rank 0's

    def run(self) -> None:
        """Train from the newest intact checkpoint, if there is one, to the end."""
        state, found = None, train.get_checkpoint()
        if found is not None:
            state, name = load_newest(self.config.folder, Path(found.path).name)
            self.newest = f"{self.config.folder}/{name}"
            if "metrics" in state:
                ended = EpochReport.from_dict(state["metrics"])
                if ended.is_last(self.trial.epochs):
                    self._report_again(ended)
                    return
        elif self.config.start is not None:
            state = load_state(self.config.start)
        if rank() == 0:
            self.log = TrialLog(self.config.folder, self.trial.digest(), epoch=state["epoch"] + 1 if state else 1)
        if self.log is None:
            self._fit(state)
            return
        self.log.configured(self.trial.to_dict())
        with self.log.writing(), record_system_metrics(self.log.record, self.device):
            self._fit(state)

    def _fit(self, state: State | None) -> None:
        record = self.log.record if self.log is not None else _ignore
        interruption = _Interruption(self.config.switch, self.device)
        while True:
            cache = self.config.cache
            state = fit(self.trial, self._report, record, state, self.device, cache, interruption.is_due)
            if state is None:
                return
            checkpoint = None
            if self.log is not None:
                self.log.flush()
                checkpoint = self._save(state, f"epoch_{state['epoch']:04d}_step_{state['step']:08d}")
            train.report(partial_report(), checkpoint, checkpoint_upload_mode=NO_UPLOAD)
            if interruption.final:
                if rank() == 0:
                    ray.get(self.config.switch.mark_saved.remote(self.config.name))
                while True:  # the driver ends this process
                    time.sleep(1)

    def _report(self, report: EpochReport, state: State) -> None:
        """Write an epoch into the trial's folder and report it to Ray."""
        checkpoint = None
        if self.log is not None:
            if report.epoch == self.trial.epochs and not report.diverged:
                _draw_gallery(self.log, self.trial, state, self.device, self.config.cache)
            self.log.report(report.metrics, report.step, report.withstood)
            checkpoint = self._save(state, f"epoch_{report.epoch:04d}")
        self._report_to_ray(report, checkpoint)

    def _report_again(self, ended: EpochReport) -> None:
        """Report the end of a trial whose driving process was killed before it kept the report."""
        if rank() == 0:  # storage may have taken the checkpoint and not the report
            TrialLog(self.config.folder, self.trial.digest(), ended.epoch).report(
                ended.metrics, ended.step, ended.withstood
            )
        self._report_to_ray(ended)

    def _report_to_ray(self, report: EpochReport, checkpoint: Any = None) -> None:
        # The digest is that of what this worker trains, even if something else was asked for.
        values = report.for_ray(self.trial.digest(), self.newest)
        train.report(values, checkpoint, checkpoint_upload_mode=NO_UPLOAD)

    def _save(self, state: State, name: str) -> Any:
        """Write a checkpoint where Ray keeps it, so that nothing is copied; None, and no error, if the disk is full."""
        try:
            save_state(state, f"{self.config.folder}/{name}")
        except UsageError as error:
            logger.warning("%s; training continues, the previous checkpoint remains the newest", error)
            return None
        self.newest = f"{self.config.folder}/{name}"
        storage = train.get_context().get_storage()
        return train.Checkpoint(f"{storage.experiment_fs_path}/{name}", storage.storage_filesystem)


def _ignore(metrics: Metrics, step: int) -> None:
    """Only rank 0 records."""


def _draw_gallery(log: TrialLog, trial: Trial, state: State, device: torch.device, cache: ShardCache) -> None:
    """Keep heatmaps of the trained model; none where they cannot be drawn, which is no reason to fail."""
    try:
        log.keep(GALLERY, gallery_of(trial, state["model"], device, cache))
    except Exception as error:
        logger.warning("no gallery: %s: %s", type(error).__name__, error)


class _Interruption:
    """Whether to save the state now, within an epoch: because this node is going away, or because the sweep stops.

    Asked after every step, it looks at every `EVERY`-th, so that all workers look, and agree, at the same ones.
    """

    EVERY = 10

    def __init__(self, switch: Any, device: torch.device) -> None:
        self.switch, self.device = switch, device
        self.steps, self.final, self.noticed = 0, False, False
        self.watches = os.environ.get("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1") != "0"

    def is_due(self) -> bool:
        self.steps += 1
        if self.steps % self.EVERY:
            return False
        requested = rank() == 0 and self.switch is not None and ray.get(self.switch.stop_requested.remote())
        self.final = sum_over_workers({"requested": float(requested)}, self.device)["requested"] > 0
        notice = self.watches and train.get_preemption_info() is not None
        first, self.noticed = notice and not self.noticed, notice
        return self.final or first


def is_retryable(error: Exception) -> bool:
    """Whether trying again may help: where a worker, a node, a connection or a disk was lost."""
    return isinstance(error, RetryableError | OSError | torch.distributed.DistError | ray.exceptions.RayError)


def describe_failure(error: Exception) -> str:
    """One line for the ranking and the terminal."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
        return f"out of memory ({_first_line(error)}); lower batch_size or image_size, or use precision bfloat16"
    if isinstance(error, UsageError):
        return _first_line(error, 500)  # its remedy is at its end
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {_first_line(error)} ({Path(where.filename).name}, line {where.lineno})"


def _first_line(error: Exception, length: int = 200) -> str:
    return str(error).strip().partition("\n")[0][:length]
