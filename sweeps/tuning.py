"""Run the trials of a sweep on Ray Tune: each a thin driver around a Ray Train run of its own.

The driver of a trial reserves no CPU: the workers' placement group, made by Ray Train, is all a trial takes, and
`max_concurrent_trials` keeps the groups from starving each other.
"""

import contextlib
import dataclasses
import logging
import os
import pickle
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import TrialScheduler

from sweeps.progress import Progress
from sweeps.ranking import Row
from sweeps.search import METRIC, make_scheduler, make_search, weight_of
from sweeps.settings import Sweep
from sweeps.tracking import Tracking
from trainer.config import UsageError
from trainer.ray_trial import run_trial

QUIET = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # also the pace of reports; the default is 2 s
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",  # autoscaling takes minutes
}


@contextlib.contextmanager
def local_cluster(num_cpus: int | None = None) -> Iterator[None]:
    """A Ray instance of this machine alone, ended with the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # The clean-up of stopped trials asks the dashboard; on a machine with several Ray instances it must know which.
    env = QUIET | {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{port}"}
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "5")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    root = str(Path(__file__).resolve().parents[1])
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    ray.init(
        address="local",
        num_cpus=num_cpus,
        include_dashboard=True,
        dashboard_port=port,
        runtime_env={"env_vars": env},
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    try:
        yield
    finally:
        ray.shutdown()


def slots(sweep: Sweep) -> int:
    """How many trials fit on the cluster at once.

    Raises:
        UsageError: if not even one fits.
    """
    have, need = ray.cluster_resources(), sweep.placement
    fit = int(have.get("CPU", 0) // (need.workers * need.cpus_per_worker))
    if need.gpus_per_worker:
        fit = min(fit, int(have.get("GPU", 0) // (need.workers * need.gpus_per_worker)))
    if fit < 1:
        raise UsageError(
            f"a trial needs {need.workers} worker(s) x {need.cpus_per_worker:g} CPU and {need.gpus_per_worker:g} GPU, "
            f"the cluster has {have.get('CPU', 0):g} CPU and {have.get('GPU', 0):g} GPU; "
            "lower --workers-per-trial or --gpus-per-worker"
        )
    return min(fit, sweep.max_concurrent or fit, sweep.total_trials)


def trial_name(regularizer: str, weight: float) -> str:
    """Such as `ssim w=0.13`."""
    return f"{regularizer} w={weight:.3g}" if weight else regularizer


def _folder_name(trial: Any) -> str:
    return trial.trial_id


def drive_trial(config: dict[str, Any], sweep: Sweep, tracking: Tracking, units: dict[str, float]) -> None:
    """The Tune trial: begin its MLflow run or go on with it, then let Ray Train work."""
    trial_id = tune.get_context().get_trial_id()
    regularizer, weight = config["regularizer"], weight_of(config)
    trial = dataclasses.replace(sweep.trial, regularizer=regularizer, weight=weight, seed=config["seed"])
    strength = weight / units[regularizer] if weight else 0.0
    recorder = tracking.trial(
        trial_id,
        trial_name(regularizer, weight),
        trial.to_dict() | {"strength": strength, "workers": sweep.placement.workers, "digest": trial.digest()},
    )
    run_trial(
        trial,
        placement=sweep.placement,
        storage=str(sweep.folder / "trials"),
        name=trial_id,
        recorder=recorder,
        callbacks=[TuneReportCallback()],
        extra={"strength": strength},
    )


class SweepCallback(tune.Callback):
    """Ends MLflow runs, carries the scheduler's state over a restart, shows progress.

    It leaves placement groups to Ray Train's cleaner: a group removed while the controller of a stopped trial still
    lives makes that controller ask for a new group, which nobody then frees.
    """

    def __init__(self, sweep: Sweep, tracking: Tracking, scheduler: TrialScheduler) -> None:
        self.sweep, self.tracking, self.scheduler = sweep, tracking, scheduler
        self.progress = Progress(sweep.total_trials, sweep.trial.epochs)

    def get_state(self) -> dict[str, bytes]:
        """Tune restores the searcher, but not the scheduler's rungs nor what callbacks know."""
        return {"scheduler": pickle.dumps(self.scheduler.__dict__), "progress": pickle.dumps(self.progress)}

    def set_state(self, state: dict[str, bytes]) -> None:
        self.scheduler.__dict__.update(pickle.loads(state["scheduler"]))
        self.progress = pickle.loads(state["progress"])

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self.progress.started(trial.trial_id, trial_name(trial.config["regularizer"], weight_of(trial.config)))

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
        self.progress.reported(trial.trial_id, result)

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self._ended(trial, status_of(self.sweep, trial.last_result or {}))

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self._ended(trial, "failed")

    def on_step_end(self, iteration: int, trials: list, **info: Any) -> None:
        self.progress.tick()

    def on_experiment_end(self, trials: list, **info: Any) -> None:
        self.progress.close()

    def _ended(self, trial: Any, status: str) -> None:
        result = trial.last_result or {}
        self.tracking.end_trial(trial.trial_id, status, str(result.get("checkpoint_path", "")))
        self.progress.ended(trial.trial_id, status, result)


def status_of(sweep: Sweep, result: dict[str, Any]) -> str:
    """finished, stopped (early), diverged or failed (no result at all)."""
    if METRIC not in result:
        return "failed"
    if result.get("diverged"):
        return "diverged"
    return "finished" if result.get("epoch") == sweep.trial.epochs else "stopped"


def run_sweep(sweep: Sweep, tracking: Tracking, units: dict[str, float]) -> list[Row]:
    """Run or continue all trials and return them as they ended.

    Raises:
        KeyboardInterrupt: if Tune was interrupted before all of them ended.
    """
    path = sweep.folder / "tune"
    trainable = tune.with_resources(
        tune.with_parameters(drive_trial, sweep=sweep, tracking=tracking, units=units),
        {"node:__internal_head__": 0.001},
    )
    if tune.Tuner.can_restore(str(path)):
        tuner = tune.Tuner.restore(str(path), trainable, resume_unfinished=True, resume_errored=True)
    else:
        scheduler = make_scheduler(sweep)
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                num_samples=sweep.total_trials,
                max_concurrent_trials=slots(sweep),
                search_alg=make_search(sweep, units),
                scheduler=scheduler,
                trial_dirname_creator=_folder_name,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(sweep.folder),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=2),
                callbacks=[SweepCallback(sweep, tracking, scheduler)],
            ),
        )
    results = tuner.fit()
    if results.num_terminated + results.num_errors < sweep.total_trials:
        raise KeyboardInterrupt
    rows = []
    for result in map(results.__getitem__, range(len(results))):
        config, metrics = result.config or {}, result.metrics or {}
        if "regularizer" not in config:
            continue
        status = "failed" if result.error else status_of(sweep, metrics)
        weight = weight_of(config)
        rows.append(
            Row(
                trial_id=str(metrics.get("trial_id", Path(result.path).name)),
                regularizer=config["regularizer"],
                weight=weight,
                strength=weight / units[config["regularizer"]] if weight else 0.0,
                seed=config["seed"],
                status=status,
                accuracy=metrics.get("val/accuracy", 0.0),
                robust_accuracy=metrics.get(METRIC, 0.0),
                heatmap_ssim=metrics.get("val/heatmap_ssim", 0.0),
                heatmap_correlation=metrics.get("val/heatmap_correlation", 0.0),
                checkpoint=str(metrics.get("checkpoint_path", "")),
                run="",  # known once MLflow has heard of it
                metrics={name: value for name, value in metrics.items() if name.startswith(("val/", "test/"))},
            )
        )
        # A process that was killed may not have said how its last trials ended.
        tracking.end_trial(rows[-1].trial_id, status, rows[-1].checkpoint)
    tracking.drain()
    return [dataclasses.replace(row, run=tracking.run_of(row.trial_id)) for row in rows]
