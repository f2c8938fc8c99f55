"""Run the trials of a sweep on Ray Tune: each a thin driver around a Ray Train run of its own.

Tune reserves one placement group per trial, a bundle for each of its workers. The process that drives the trial takes
nothing of its own and runs beside the first worker. Process, group and workers go on to the next trial when one has
ended. Stock Ray Train makes a group of its own for each trial, and nothing goes on to the next one.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from sweeps import finalists, interrupt
from sweeps.callback import SweepCallback, tell_end
from sweeps.capacity import slots
from sweeps.desk import open_desk
from sweeps.drive import Shared, drive_trial
from sweeps.outcomes import keep_rows, kept_rows, row_of
from sweeps.proposals import FIXED, proposal
from sweeps.ranking import Row
from sweeps.search import make_scheduler, make_search, recover_journal, tune_folder
from sweeps.settings import Sweep
from sweeps.tracking import Tracking

DRIVER: dict[str, float] = {}  # a first bundle that is empty: Tune puts the trial's process where the next one is
STOCK_DRIVER = {"node:__internal_head__": 0.001}  # takes nothing that stock Ray Train, with a group of its own, needs
ERRORS = 2  # of a trial, after each of which it is tried again; `SweepCallback` makes up for lost nodes


def _folder_name(trial: Any) -> str:
    return trial.trial_id


def run_sweep(sweep: Sweep, tracking: Tracking, units: dict[str, float]) -> list[Row]:
    """Run or continue the search, all its parts, and return the trials as they ended.

    Raises:
        KeyboardInterrupt: if Tune was interrupted before all of them ended.
    """
    rows: list[Row] = []
    for part, trials_each in enumerate(sweep.parts):
        folder = tune_folder(part)
        kept = kept_rows(f"{sweep.folder}/{folder}")
        # Trials that failed are tried again, but not once the study went on without them.
        if kept is None or (part == len(sweep.parts) - 1 and any(row.status == "failed" for row in kept)):
            kept = _run_trials(
                sweep,
                tracking,
                units,
                folder,
                len(sweep.names) * trials_each,
                scheduler=partial(make_scheduler, sweep, part),
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
    path, desk = f"{sweep.folder}/{folder}", open_desk(tracking.folder)
    lean, workers = sweep.placement.lean, [sweep.placement.bundle()] * sweep.placement.workers
    bundles = [DRIVER, *workers] if lean else [STOCK_DRIVER]
    trainable = tune.with_resources(
        tune.with_parameters(
            drive_trial,
            shared=Shared(
                trial=sweep.trial.to_dict(),
                placement=sweep.placement,
                folder=sweep.trials_folder,
                units=units,
                spool=tracking.folder,
                desk=desk,
            ),
        ),
        tune.PlacementGroupFactory(bundles),
    )
    recover_journal(sweep)  # before anything that holds the study is unpickled
    if tune.Tuner.can_restore(path):
        tuner = tune.Tuner.restore(path, trainable, resume_unfinished=True, resume_errored=True)
    else:
        scheduling = scheduler()
        tuner = tune.Tuner(
            trainable,
            param_space=param_space,
            tune_config=tune.TuneConfig(
                num_samples=1 if param_space else trials,
                max_concurrent_trials=slots(sweep, trials),
                reuse_actors=lean,
                search_alg=search(),
                scheduler=scheduling,
                trial_dirname_creator=_folder_name,
            ),
            run_config=tune.RunConfig(
                name=folder,
                storage_path=sweep.folder,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=ERRORS),
                callbacks=[SweepCallback(sweep, tracking, scheduling, trials, units, path)],
            ),
        )
    with interrupt.saving(desk):
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
