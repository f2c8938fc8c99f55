"""Run the trials of a sweep on Ray Tune: each a thin driver around a Ray Train run of its own.

Tune reserves one placement group per trial, a bundle for each of its workers. The process that drives the trial takes
nothing of its own and runs beside the first worker. Process, group and workers go on to the next trial when one has
ended. Stock Ray Train makes a group of its own for each trial, and nothing goes on to the next one.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from sweeps import finalists, interrupt
from sweeps.callback import SweepCallback, failure_in_words, trial_ended
from sweeps.capacity import slots
from sweeps.dial_sampler import MAX_DROP
from sweeps.early_stopping import make_scheduler
from sweeps.events import PartEnded, cut_half_line
from sweeps.interrupt import open_switch
from sweeps.outcomes import trial_started
from sweeps.proposals import FIXED, proposal
from sweeps.ranking import Row
from sweeps.recording import Recording
from sweeps.search import make_search, open_study, recover_journal, tune_folder
from sweeps.settings import Sweep
from sweeps.trainable import Shared, train_trial
from sweeps.trials import read_trials, results

DRIVER: dict[str, float] = {}  # a first bundle that is empty: Tune puts the trial's process where the next one is
STOCK_DRIVER = {"node:__internal_head__": 0.001}  # takes nothing that stock Ray Train, with a group of its own, needs
ERRORS = 2  # of a trial, after each of which it is tried again; `SweepCallback` makes up for lost nodes


def _folder_name(trial: Any) -> str:
    return trial.trial_id


def run_sweep(sweep: Sweep, recording: Recording, units: dict[str, float]) -> list[Row]:
    """Run or continue the search, all its parts, and return the trials as they ended.

    Raises:
        KeyboardInterrupt: if Tune was interrupted before all of them ended.
    """
    rows: list[Row] = []
    for number, trials_each in enumerate(sweep.parts):
        part = tune_folder(number)
        ended = results(recording.log, part)
        # Trials that failed are tried again, but not once the study went on without them.
        if ended is None or (number == len(sweep.parts) - 1 and any(row.status == "failed" for row in ended)):
            ended = _run_trials(
                sweep,
                recording,
                units,
                part,
                len(sweep.names) * trials_each,
                scheduler=partial(make_scheduler, sweep),
                search=partial(make_search, sweep, units, number),
            )
        rows += ended
    return rows


def run_finalists(
    sweep: Sweep, recording: Recording, units: dict[str, float], configs: list[dict[str, Any]]
) -> list[Row]:
    """Run or continue fixed trials, to their end, and return them as they ended.

    Raises:
        KeyboardInterrupt: if Tune was interrupted before all of them ended.
    """
    part = finalists.folder_of(configs)
    return _run_trials(sweep, recording, units, part, len(configs), param_space={FIXED: tune.grid_search(configs)})


def _run_trials(
    sweep: Sweep,
    recording: Recording,
    units: dict[str, float],
    part: str,
    trials: int,
    *,
    scheduler: Callable[[], TrialScheduler] = FIFOScheduler,
    search: Callable[[], Searcher | None] = lambda: None,
    param_space: dict[str, Any] | None = None,
) -> list[Row]:
    """One run of Tune, in a folder of its own; one that was begun there goes on."""
    path, switch = f"{sweep.folder}/{part}", open_switch()
    lean, workers = sweep.placement.lean, [sweep.placement.bundle()] * sweep.placement.workers
    shared = Shared(trial=sweep.trial.to_dict(), placement=sweep.placement, folder=sweep.trials_folder, switch=switch)
    trainable = tune.with_resources(
        tune.with_parameters(train_trial, shared=shared),
        tune.PlacementGroupFactory([DRIVER, *workers] if lean else [STOCK_DRIVER]),
    )
    take_up_study(sweep)  # before anything that holds it is unpickled
    if tune.Tuner.can_restore(path):
        open_study(sweep).set_user_attr(MAX_DROP, sweep.max_accuracy_drop)  # which may have changed
        tuner = tune.Tuner.restore(path, trainable, resume_unfinished=True, resume_errored=True)
    else:
        tuner = tune.Tuner(
            trainable,
            param_space=param_space,
            tune_config=tune.TuneConfig(
                num_samples=1 if param_space else trials,
                max_concurrent_trials=slots(sweep, trials),
                reuse_actors=lean,
                search_alg=search(),
                scheduler=scheduler(),
                trial_dirname_creator=_folder_name,
            ),
            run_config=tune.RunConfig(
                name=part,
                storage_path=sweep.folder,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=ERRORS),
                callbacks=[SweepCallback(sweep, recording, trials, units, part)],
            ),
        )
    with interrupt.saving(switch):
        grid = tuner.fit()
    counted = _reconcile(sweep, recording, units, part, grid)
    recording.append(PartEnded(part=part, trials=counted))
    recording.drain()
    return results(recording.log, part) or []


def take_up_study(sweep: Sweep) -> None:
    """Have the study as it was kept last; Optuna reads nothing behind the half line that a full disk leaves."""
    recover_journal(sweep)
    journal = sweep.local_folder / "study.journal"
    if journal.exists():
        with journal.open("r+b") as stream:
            cut_half_line(stream)


def _reconcile(
    sweep: Sweep, recording: Recording, units: dict[str, float], part: str, grid: tune.ResultGrid
) -> tuple[str, ...]:
    """Log how trials ended whose end Tune knows and the log does not: its writer was killed between the two.

    Returns:
        Ids of Tune's trials.
    """
    known, counted = read_trials(recording.log), []
    for result in map(grid.__getitem__, range(len(grid))):
        config, metrics = result.config or {}, result.metrics or {}
        if "regularizer" not in proposal(config):
            continue
        trial_id = str(metrics.get("trial_id", Path(result.path).name))
        if trial_id not in known:
            recording.append(trial_started(sweep, units, part, trial_id, config))
        if trial_id not in known or known[trial_id].ended is None:
            error = failure_in_words(result.error) if result.error is not None else ""
            recording.append(trial_ended(sweep, trial_id, metrics, error))
        counted.append(trial_id)
    return tuple(counted)
