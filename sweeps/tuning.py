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
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from sweeps import finalists, interrupt
from sweeps.outcomes import FIXED, keep_rows, kept_rows, mismatch, proposal, row_of, status_of, trial_of
from sweeps.progress import Progress
from sweeps.ranking import Row
from sweeps.search import make_scheduler, make_search
from sweeps.settings import Sweep
from sweeps.tracking import Tracking
from trainer.config import UsageError
from trainer.ray_trial import PARTIAL, StopSwitch, run_trial

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
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # sweeps.interrupt has one that lets trials save their state
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


def slots(sweep: Sweep, trials: int | None = None) -> int:
    """How many trials fit on the cluster at once; of `trials`, by default those of the search.

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
    return min(fit, sweep.max_concurrent or fit, trials or sweep.total_trials)


def trial_name(regularizer: str, weight: float) -> str:
    """Such as `ssim w=0.13`."""
    return f"{regularizer} w={weight:.3g}" if weight else regularizer


def _folder_name(trial: Any) -> str:
    return trial.trial_id


class EpochReports(TuneReportCallback):
    """Tells Tune of every epoch, and not of checkpoints within one."""

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        if not metrics[0].get(PARTIAL):
            super().after_report(run_context, metrics, checkpoint)


def drive_trial(config: dict[str, Any], sweep: Sweep, tracking: Tracking, units: dict[str, float], switch: Any) -> None:
    """The Tune trial: begin its MLflow run or go on with it, then let Ray Train work."""
    trial_id = tune.get_context().get_trial_id()
    trial = trial_of(sweep, config)
    strength = trial.weight / units[trial.regularizer] if trial.weight else 0.0
    recorder = tracking.trial(
        trial_id,
        trial_name(trial.regularizer, trial.weight),
        trial.to_dict() | {"strength": strength, "workers": sweep.placement.workers, "digest": trial.digest()},
        {"finalist": trial.regularizer} if FIXED in config else None,
    )
    run_trial(
        trial,
        placement=sweep.placement,
        storage=str(sweep.folder / "trials"),
        name=trial_id,
        recorder=recorder,
        callbacks=[EpochReports()],
        extra={"strength": strength},
        switch=switch,
    )


class SweepCallback(tune.Callback):
    """Ends MLflow runs, carries the scheduler's state over a restart, shows progress.

    It leaves placement groups to Ray Train's cleaner: a group removed while the controller of a stopped trial still
    lives makes that controller ask for a new group, which nobody then frees.
    """

    def __init__(self, sweep: Sweep, tracking: Tracking, scheduler: TrialScheduler, trials: int) -> None:
        self.sweep, self.tracking, self.scheduler = sweep, tracking, scheduler
        self.progress = Progress(trials, sweep.trial.epochs)

    def get_state(self) -> dict[str, bytes]:
        """Tune restores the searcher, but not the scheduler's rungs nor what callbacks know."""
        return {"scheduler": pickle.dumps(self.scheduler.__dict__), "progress": pickle.dumps(self.progress)}

    def set_state(self, state: dict[str, bytes]) -> None:
        self.scheduler.__dict__.update(pickle.loads(state["scheduler"]))
        self.progress = pickle.loads(state["progress"])

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        asked = trial_of(self.sweep, trial.config)
        self.progress.started(trial.trial_id, trial_name(asked.regularizer, asked.weight))

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
        self.progress.reported(trial.trial_id, result)

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        result = trial.last_result or {}
        self._ended(trial, status_of(self.sweep, trial.config, result), result.get("failed", ""))
        wrong = mismatch(self.sweep, trial.config, result) if result and not result.get("failed") else None
        if wrong:
            self.progress.say(f"{trial.trial_id}: {wrong}")

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self._ended(trial, "failed", _last_line(trial.get_error()))

    def on_step_end(self, iteration: int, trials: list, **info: Any) -> None:
        self.progress.tick()
        interrupt.end_if_asked({t.trial_id for t in trials if t.status == t.RUNNING}, self.progress.say)

    def on_experiment_end(self, trials: list, **info: Any) -> None:
        self.progress.close()

    def _ended(self, trial: Any, status: str, reason: str = "") -> None:
        result = trial.last_result or {}
        tell_end(self.tracking, trial.trial_id, status, result)
        self.progress.ended(trial.trial_id, status, result, reason)


def _last_line(error: Any) -> str:
    """What an exception's trace ends with."""
    return (str(error or "").strip().splitlines() or [""])[-1][:300]


def tell_end(tracking: Tracking, trial_id: str, status: str, result: dict[str, Any]) -> None:
    """Tell MLflow how a trial ended, and which configuration its worker says it trained."""
    tags = {"checkpoint": str(result.get("checkpoint_path", "")), "effective_digest": str(result.get("digest", ""))}
    tracking.end_trial(trial_id, status, tags)


def run_sweep(sweep: Sweep, tracking: Tracking, units: dict[str, float]) -> list[Row]:
    """Run or continue the search, all its parts, and return the trials as they ended.

    Raises:
        KeyboardInterrupt: if Tune was interrupted before all of them ended.
    """
    rows: list[Row] = []
    for part, trials_each in enumerate(sweep.parts):
        folder = f"tune-{part}" if part else "tune"
        kept = kept_rows(sweep.folder / folder)
        # Trials that failed are tried again, but not once the study went on without them.
        if kept is None or (part == len(sweep.parts) - 1 and any(row.status == "failed" for row in kept)):
            kept = _run_trials(
                sweep,
                tracking,
                units,
                folder,
                len(sweep.names) * trials_each,
                scheduler=partial(make_scheduler, sweep),
                search=partial(make_search, sweep, units, part),
            )
        rows += kept
    return rows


def run_finalists(
    sweep: Sweep, tracking: Tracking, units: dict[str, float], configs: list[dict[str, Any]]
) -> list[Row]:
    """Run or continue fixed trials, to their end, and return them as they ended.

    Raises:
        KeyboardInterrupt: if Tune was interrupted before all of them ended.
    """
    folder = finalists.folder_of(configs)
    return _run_trials(sweep, tracking, units, folder, len(configs), param_space={FIXED: tune.grid_search(configs)})


def _run_trials(
    sweep: Sweep,
    tracking: Tracking,
    units: dict[str, float],
    folder: str,
    trials: int,
    *,
    scheduler: Callable[[], TrialScheduler] = FIFOScheduler,
    search: Callable[[], Searcher | None] = lambda: None,
    param_space: dict[str, Any] | None = None,
) -> list[Row]:
    """One run of Tune, in a folder of its own; one that was begun there goes on."""
    path, switch = sweep.folder / folder, ray.remote(num_cpus=0)(StopSwitch).remote()
    trainable = tune.with_resources(
        tune.with_parameters(drive_trial, sweep=sweep, tracking=tracking, units=units, switch=switch),
        {"node:__internal_head__": 0.001},
    )
    if tune.Tuner.can_restore(str(path)):
        tuner = tune.Tuner.restore(str(path), trainable, resume_unfinished=True, resume_errored=True)
    else:
        scheduling = scheduler()
        tuner = tune.Tuner(
            trainable,
            param_space=param_space,
            tune_config=tune.TuneConfig(
                num_samples=1 if param_space else trials,
                max_concurrent_trials=slots(sweep, trials),
                search_alg=search(),
                scheduler=scheduling,
                trial_dirname_creator=_folder_name,
            ),
            run_config=tune.RunConfig(
                name=folder,
                storage_path=str(sweep.folder),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=2),
                callbacks=[SweepCallback(sweep, tracking, scheduling, trials)],
            ),
        )
    with interrupt.saving(switch):
        results = tuner.fit()
    rows = []
    for result in map(results.__getitem__, range(len(results))):
        config, metrics = result.config or {}, result.metrics or {}
        if "regularizer" not in proposal(config):
            continue
        trial_id = str(metrics.get("trial_id", Path(result.path).name))
        rows.append(row_of(sweep, units, config, metrics, trial_id, failed=result.error is not None))
        # A process that was killed may not have said how its last trials ended.
        tell_end(tracking, trial_id, rows[-1].status, metrics)
    tracking.drain()
    rows = [dataclasses.replace(row, run=tracking.run_of(row.trial_id)) for row in rows]
    keep_rows(path, rows)
    return rows
