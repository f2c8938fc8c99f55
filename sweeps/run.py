"""Run a sweep: prepare, calibrate, search, train the best weights again, keep the result.

`Sweep.run`, `Sweep.resume` and `Sweep.extend` are these functions.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import optuna

from sweeps import finalists, start_check
from sweeps.capacity import slots, wait_for_machines, where_workers_compute
from sweeps.checkpoints import check_space
from sweeps.cluster import ray_cluster, where
from sweeps.dial_sampler import MAX_DROP
from sweeps.embedded import embed
from sweeps.finalize import finalize
from sweeps.folder import DRIVER, create_folder, driving
from sweeps.messages import Advanced, Note, Progress, stage, tell, told_to
from sweeps.prepare import check, filled_in, on_cluster, reach_tracking, wait_for_cluster
from sweeps.provenance import dataset, provenance, source
from sweeps.ranking import rule
from sweeps.recording import start_sweep
from sweeps.report.page import in_markdown
from sweeps.results import SweepResult
from sweeps.resuming import as_kept, extended
from sweeps.settings import Sweep
from sweeps.start_check import StartCheck
from sweeps.start_weights import make_start
from sweeps.tuning import run_finalists, run_sweep
from trainer.calibrate import calibrate
from trainer.locations import read_json, write_files, write_json

CALIBRATION = "calibration.json"


def run_new(sweep: Sweep, progress: Progress | None, verbose: bool) -> SweepResult:
    """Run a sweep that has not begun."""
    with _telling(progress), ExitStack() as held:
        sweep = filled_in(sweep)
        check(sweep)
        create_folder(sweep)
        held.enter_context(driving(sweep, new=True))
        held.callback(_remove_if_empty, sweep.local_folder)
        held.enter_context(_joined(sweep, verbose))
        sweep = on_cluster(sweep)
        wait_for_cluster(sweep, new=True)
        sweep = embed(sweep) if sweep.trial.data is None else make_start(sweep)
        measure_start(sweep)
        units = measure_units(sweep)
        stage(check_space(sweep))
        sweep.save()  # last: from here on the sweep exists and can be resumed
        return search(sweep, units)


def _remove_if_empty(folder: Path) -> None:
    """Remove the folder of a sweep that failed before it wrote anything but its lock."""
    with suppress(OSError):
        if os.listdir(folder) == [DRIVER]:
            (folder / DRIVER).unlink()
            folder.rmdir()


def run_again(sweep: Sweep, progress: Progress | None, verbose: bool) -> SweepResult:
    """Continue a sweep that was interrupted, or pick anew by another rule."""
    with _telling(progress), ExitStack() as held:
        sweep = as_kept(sweep, "resume")
        return _go_on(sweep, held, verbose)


def run_more(sweep: Sweep, trials: int, progress: Progress | None, verbose: bool) -> SweepResult:
    """Run so many trials more of each regularizer of a sweep that has ended."""
    with _telling(progress), ExitStack() as held:
        sweep = extended(as_kept(sweep, "extend"), trials)
        return _go_on(sweep, held, verbose)


def _go_on(sweep: Sweep, held: ExitStack, verbose: bool) -> SweepResult:
    reach_tracking(sweep)
    held.enter_context(driving(sweep))
    held.enter_context(_joined(sweep, verbose))
    wait_for_cluster(sweep, new=False)
    units = read_json(f"{sweep.folder}/{CALIBRATION}")
    tell_start(start_check.kept(sweep.folder))
    if sweep != Sweep.load(sweep.name, sweep.storage):
        stage(check_space(sweep))
        sweep.save()
    return search(sweep, units)


@contextmanager
def _telling(progress: Progress | None) -> Iterator[None]:
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with told_to(progress):
        yield


@contextmanager
def _joined(sweep: Sweep, verbose: bool) -> Iterator[None]:
    """Say what comes, then join the cluster."""
    stage(f"sweep {sweep.name} in {sweep.folder}")
    parts = " + ".join(str(len(sweep.names) * part) for part in sweep.parts)
    count, each = len(sweep.names) - 1, " + ".join(map(str, sweep.parts))
    regularizers, weights = f"regularizer{'s' * (count != 1)}", "weight" if each == "1" else "weights"
    stage(f"{parts} trials: {count} {regularizers} and the baseline, {each} {weights} each")
    if sweep.seeds:
        stage(f"then up to {sweep.most_repetitions} more: the best weights again with `seeds` {sweep.seeds}")
    stage(where())
    with ray_cluster(verbose=verbose, stock=not sweep.placement.lean):
        wait_for_machines(stage)
        yield


def measure_units(sweep: Sweep) -> dict[str, float]:
    """Calibrate every weight and keep the result in the sweep's folder."""
    stage("calibrating the weight of each regularizer")
    begun = iter(range(len(sweep.names)))
    units = where_workers_compute(
        sweep.placement,
        calibrate,
        sweep.trial,
        sweep.names,
        progress=lambda name: tell(Advanced(name, next(begun) / len(sweep.names))),
        settings={name: sweep.fixed_of(name) for name in sweep.names},
    )
    write_json(f"{sweep.folder}/{CALIBRATION}", units)
    return units


def measure_start(sweep: Sweep) -> None:
    """Measure the start checkpoint and keep the result in the sweep's folder."""
    stage("measuring the start checkpoint")
    start = where_workers_compute(
        sweep.placement,
        start_check.measure,
        sweep.trial,
        sweep.placement.workers,
        progress=lambda name, done: tell(Advanced(name, done)),
    )
    start_check.keep(sweep.folder, start)
    tell_start(start)


def tell_start(start: StartCheck | None) -> None:
    """Tell what the sweep starts from, and warn of what keeps it from an answer."""
    if start is not None:
        tell(Note(start.line))
        for warning in start.warnings:
            tell(Note(warning, warning=True))


def search(sweep: Sweep, units: dict[str, float]) -> SweepResult:
    """All trials of the sweep, recorded, and what they leave."""
    params = sweep.trial.to_dict() | {
        "regularizers": ",".join(sweep.names),
        "trials_per_regularizer": sweep.parts[0],
        "sampler": sweep.sampler,
        "allocation": sweep.allocation,
        "objectives": sweep.objectives,
        "scheduler": sweep.scheduler,
        "workers_per_trial": sweep.placement.workers,
        MAX_DROP: sweep.max_accuracy_drop,
        "selection_rule": rule(sweep.max_accuracy_drop, sweep.seeds),
        "source": sweep.source,
        "new_head": sweep.new_head,
        "head_steps": sweep.head_steps if sweep.new_head else 0,
        "ema": sweep.ema,
    }
    params |= {f"fixed.{name}": value for name, value in sweep.fixed.items()}
    for key in ("regularizer", "weight", "penalty_settings"):
        params.pop(key)
    files = provenance(sweep, units)
    write_files(sweep.folder, files)
    origin = {"tags": source(), "dataset": dataset(sweep.trial.data), "files": tuple(files)}
    with start_sweep(sweep, params, **origin) as recording:
        if start := start_check.kept(sweep.folder):
            recording.start_measured(start.metrics, start.warnings, in_markdown(start))
        stage(f"searching, {slots(sweep)} trials at a time")
        rows = run_sweep(sweep, recording, units)
        before: list[dict[str, Any]] = []
        while True:
            chosen = finalists.choose_finalists(sweep, recording.log, rows)
            again = finalists.missing(sweep, recording.log, chosen)
            if not again or again == before:  # those that failed are tried once
                break
            stage(f"training the best weights again with new seeds: {len(again)} trials")
            run_finalists(sweep, recording, units, again)
            before = again
        finalize(sweep, units, rows, recording)
    return SweepResult.load(sweep.name, sweep.storage)
