"""Run the trials of a sweep on Ray Tune: each a thin driver around a Ray Train run of its own.

The driver of a trial reserves no CPU: the workers' placement group, made by Ray Train, is all a trial takes, and
`max_concurrent_trials` keeps the groups from starving each other.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from sweeps import finalists, interrupt
from sweeps.callback import SweepCallback, tell_end, trial_name
from sweeps.cluster import slots
from sweeps.outcomes import FIXED, keep_rows, kept_rows, proposal, row_of, trial_of
from sweeps.ranking import Row
from sweeps.search import make_scheduler, make_search
from sweeps.settings import Sweep
from sweeps.tracking import Tracking
from trainer.ray_trial import PARTIAL, StopSwitch, run_trial


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
                callbacks=[SweepCallback(sweep, tracking, scheduling, trials, units)],
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
