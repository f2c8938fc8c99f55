"""Compare every input-gradient regularizer by finetuning one checkpoint with each of them.

    python sweeps/all_regularizers.py                      # handwritten digits, no download, a few minutes
    python sweeps/all_regularizers.py --data SHARDS --model resnet50 --checkpoint resnet50.pth --epochs 4

Prints a ranked table (regularizer, weight, accuracy, robust accuracy, heatmap similarity), the pick, and the
commands to open the MLflow UI and to train the pick further.
"""

import dataclasses
import logging
import os
import shlex
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path.home() / "heatmap-sweeps"))  # `ray submit` brings the script alone, without its project
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the script runs without being installed

from sweeps.environment import set_environment

set_environment()  # before Ray is imported

import optuna
import torch
from rich.console import Console
from rich.progress import Progress

from sweeps import finalists, start_check
from sweeps.capacity import in_words, nodes, on_a_worker, per_trial, slots, wait_for_machines, wait_for_room
from sweeps.checkpoints import check_space
from sweeps.cluster import check_copy, how_to_run, ray_cluster, where
from sweeps.finalists import Finalist
from sweeps.options import parse, sweep_of, with_defaults
from sweeps.provenance import dataset, provenance, source
from sweeps.ranking import Row, pick, reason, rule, table
from sweeps.recording import Recording, start_sweep
from sweeps.report import PAGE, in_markdown
from sweeps.settings import Sweep, create_folder, driving, write_files, write_json
from sweeps.shared import check_shared
from sweeps.start_check import StartCheck
from sweeps.start_weights import is_made, load_start, make_start
from sweeps.tracking.model import ALIAS
from sweeps.tracking.server import check_tracking
from trainer.calibrate import calibrate
from trainer.config import Trial, UsageError
from trainer.data import train_loader
from trainer.digits import write_digits
from trainer.fit import fit
from trainer.locations import absolute, file_size, read_json, whole_file
from trainer.models import build_model
from trainer.placement import TESTED_RAY
from trainer.preprocess import Transform
from trainer.shards import evaluation_splits, read_shards, skipped_samples

console = Console()

CALIBRATION = "calibration.json"
PRETRAINING: dict[str, Any] = {
    "epochs": 3,
    "images_per_epoch": 3840,
    "batch_size": 32,
    # 0.1, 0.01 and 0.0001 in the three epochs. At a constant rate the accuracy is what the last few steps happen to
    # make it, around 0.95 and another on each CPU; so it is 0.98 to 0.99 on all that were tried.
    "schedule": "imagenet",
    "learning_rate": 0.8,  # for a batch of 256
    "batch_norm": "flow",
    "compile": False,
}


def prepare(sweep: Sweep, embedded: bool, held: ExitStack) -> None:
    """Refuse what cannot work, then make the sweep's folder.

    Args:
        sweep: to be run.
        embedded: whether its data are the digits.
        held: takes what lasts until the sweep is over.
    """
    build_model(sweep.trial.model, classes=2)  # refuses an unknown name
    if not embedded:
        check_start(sweep)
    reach_tracking(sweep)
    create_folder(sweep)
    held.enter_context(driving(sweep, new=True))


def embed(sweep: Sweep) -> Sweep:
    """Make data and checkpoint of the embedded default."""
    stage("writing handwritten digits as shards")
    write_digits(str(sweep.trial.data))
    stage(f"pretraining {sweep.trial.model} on them")
    return dataclasses.replace(sweep, trial=dataclasses.replace(sweep.trial, checkpoint=pretrain(sweep)))


def reach_tracking(sweep: Sweep) -> None:
    """Refuse a server that is away, or a database that cannot be opened, before anything is started."""
    if not sweep.mlflow.startswith(f"sqlite:///{sweep.local_storage}"):
        check_tracking(sweep.mlflow)


def check_start(sweep: Sweep) -> None:
    """Refuse data, a model or a checkpoint that do not fit before anything is written."""
    trial = sweep.trial
    train = read_shards(trial.data, "train")
    if skipped := skipped_samples(trial.data, train, *evaluation_splits(trial.data)):
        console.print(skipped, highlight=False, soft_wrap=True)
    train_loader(  # refuses too few images
        train,
        Transform(trial.image_size, train=False),
        trial.normalization,
        rank=0,
        world_size=sweep.placement.workers,
        seed=0,
        steps=1,
        batch_size=trial.batch_size,
    )
    load_start(sweep, stage)


def pretrain(sweep: Sweep) -> str:
    """Train the start checkpoint of the embedded default, in this process."""
    path = f"{sweep.folder}/pretrained.pt"
    trial = dataclasses.replace(sweep.trial, **PRETRAINING, robust_images=1)
    states: list[dict] = []
    fit(trial, lambda metrics, state: states.append(state | {"accuracy": metrics["val/accuracy"]}))
    with whole_file(path) as stream:
        torch.save({"model": states[-1]["model"]}, stream)
    console.print(f"  accuracy {100 * states[-1]['accuracy']:.1f} % on val", highlight=False)
    return path


def measure_units(sweep: Sweep) -> dict[str, float]:
    """Calibrate every weight and keep the result in the sweep's folder."""
    stage("calibrating the weight of each regularizer")
    device = torch.device("cuda" if sweep.placement.gpus else "cpu")
    what = (sweep.trial, sweep.names, device, sweep.placement.cache)
    if device.type == "cuda" and not torch.cuda.is_available():  # a head without a GPU
        units = on_a_worker(sweep.placement, calibrate, *what)
    else:
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bars:
            bar = bars.add_task("reading images", total=len(sweep.names) + 1)
            units = calibrate(*what, lambda name: bars.update(bar, advance=1, description=name))
    write_json(f"{sweep.folder}/{CALIBRATION}", units)
    return units


def measure_start(sweep: Sweep) -> None:
    """Measure the start checkpoint and keep the result in the sweep's folder."""
    stage("measuring the start checkpoint")
    device = torch.device("cuda" if sweep.placement.gpus else "cpu")
    what = (sweep.trial, sweep.placement.workers, device, sweep.placement.cache)
    if device.type == "cuda" and not torch.cuda.is_available():  # a head without a GPU
        start = on_a_worker(sweep.placement, start_check.measure, *what)
    else:
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bars:
            bar = bars.add_task("reading images", total=1.0)
            start = start_check.measure(*what, lambda name, done: bars.update(bar, completed=done, description=name))
    start_check.keep(sweep.folder, start)
    say_start(start)


def say_start(start: StartCheck | None) -> None:
    """Tell what the sweep starts from, and warn of what keeps it from an answer."""
    for line in () if start is None else (start.line, *(f"warning: {warning}" for warning in start.warnings)):
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def run(sweep: Sweep, units: dict[str, float]) -> tuple[list[Row], list[Finalist], Recording]:
    """All trials of the sweep, recorded; returns how they ended and the record."""
    from sweeps.closing import close
    from sweeps.tuning import run_finalists, run_sweep

    params = sweep.trial.to_dict() | {
        "regularizers": ",".join(sweep.names),
        "trials_per_regularizer": sweep.trials_per_regularizer,
        "allocation": sweep.allocation,
        "objectives": sweep.objectives,
        "scheduler": sweep.scheduler,
        "workers_per_trial": sweep.placement.workers,
        "selection_rule": rule(sweep.max_accuracy_drop),
        "source": sweep.source,
        "new_head": sweep.new_head,
        "head_steps": sweep.head_steps if sweep.new_head else 0,
        "ema": sweep.ema,
    }
    for key in ("regularizer", "weight"):
        params.pop(key)
    files = provenance(sweep, units)
    write_files(sweep.folder, files)
    origin = {"tags": source(), "dataset": dataset(sweep.trial.data), "files": tuple(files)}
    with start_sweep(sweep, params, **origin) as recording:
        if start := start_check.kept(sweep.folder):
            recording.start_measured(start.metrics, start.warnings, in_markdown(start))
        stage(f"searching, {slots(sweep)} trials at a time")
        rows = run_sweep(sweep, recording, units)
        again = finalists.missing(sweep, recording.log, finalists.choose(rows, sweep.max_accuracy_drop))
        if again:
            stage(f"training the best weight of each regularizer again: {len(again)} trials")
            run_finalists(sweep, recording, units, again)
        repeated = close(sweep, units, rows, recording, stage)
    return rows, repeated, recording


def settle(sweep: Sweep, trial: Trial | None) -> None:
    """See that the cluster has room for a trial, or will have, and that its nodes see what a trial needs."""
    if sweep.placement.ray_train == "lean" and not sweep.placement.lean:
        stage(f"this is not Ray {TESTED_RAY}: its own Ray Train runs, with more processes for each trial")
    at_once = slots(sweep)
    stage(f"{in_words(nodes())}: {at_once} trial{'s' if at_once > 1 else ''} of {per_trial(sweep.placement)} at a time")
    wait_for_room(sweep.placement, stage)
    check_shared(sweep.storage, trial)


def given_trial(sweep: Sweep, embedded: bool) -> Trial | None:
    """What the user gave and all nodes must see; None if the sweep makes data and checkpoint itself."""
    if embedded:
        return None
    return dataclasses.replace(sweep.trial, checkpoint=None) if is_made(sweep) else sweep.trial


def say_how_many(sweep: Sweep) -> None:
    """Tell what it will cost before it begins."""
    parts = " + ".join(str(len(sweep.names) * part) for part in sweep.parts)
    stage(f"{parts} trials to search, {len(sweep.names)} regularizers with the baseline")
    if sweep.seeds:
        stage(f"then up to {len(sweep.names) * sweep.seeds} more for --seeds {sweep.seeds}")


def conclude(sweep: Sweep, rows: list[Row], repeated: list[Finalist], recording: Recording) -> int:
    """Print the tables, the pick and what to do next; the exit status."""
    picked = pick(rows, sweep.max_accuracy_drop)
    console.print(table(rows, picked))
    failed = [row for row in rows if row.status == "failed"]
    short = [finalist.regularizer for finalist in repeated if len(finalist.repetitions) < sweep.seeds]
    console.print(reason(rows, sweep.max_accuracy_drop), highlight=False)
    if picked is not None:
        clean, robust = (100 * picked.metrics[f"test/{name}"] for name in ("accuracy", "robust_accuracy"))
        console.print(f"On test, which chose nothing: accuracy {clean:.1f} %, robust {robust:.1f} %.", highlight=False)
    if repeated:
        console.print(finalists.table(repeated))
    python = shlex.quote(os.path.relpath(sys.executable) if sys.prefix != sys.base_prefix else "python")
    usual = absolute(os.environ.get("SWEEPS_STORAGE", "runs"))
    storage = "" if sweep.storage == usual else f" --storage {shlex.quote(sweep.storage)}"
    if not sweep.mlflow.startswith("http"):
        ui = f"{python} -m mlflow ui --backend-store-uri {shlex.quote(sweep.mlflow)}"
        console.print(f"Start MLflow:  {ui}", soft_wrap=True, highlight=False)
    console.print(f"Look at it:  {recording.page()}", soft_wrap=True, highlight=False)
    console.print(f"See which won, and why:  {sweep.folder}/{PAGE}", soft_wrap=True, highlight=False)
    if picked is not None:
        console.print(
            f"Train the pick further:  {how_to_run('sweeps/resume_best.py')} --name {shlex.quote(sweep.name)}{storage}",
            soft_wrap=True,
            highlight=False,
        )
        if (sweep.local_folder / "models" / picked.trial_id).exists():
            console.print(f"Load it with MLflow:  models:/{sweep.name}@{ALIAS}", soft_wrap=True, highlight=False)
    if sum(sweep.parts) == 1:
        console.print(
            "One weight of each was tried: this ranks weights, not regularizers. --extend 4, and --seeds, tell more.",
            highlight=False,
        )
    if queued := recording.queued():
        console.print(queued, soft_wrap=True, highlight=False, markup=False)
    if failed or len(rows) < sweep.total_trials:
        console.print(
            f"{len(failed)} of {sweep.total_trials} trials failed: traces are in {sweep.folder}/trials/*/failure.json"
        )
    if short:
        console.print(f"Not every repetition of {', '.join(short)} finished; see {sweep.folder}/finalists-*")
    return 0 if picked is not None and not failed and not short and len(rows) == sweep.total_trials else 1


def stage(name: str) -> None:
    """Say what happens now."""
    console.print(f"[bold]>[/bold] {name}", highlight=False)


def main() -> int:
    """Run the sweep; the exit status."""
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    given = parse(__doc__.partition("\n\n")[0])
    sweep: Sweep | None = None
    try:
        check_copy(__file__)
        with ExitStack() as held:
            sweep, again = sweep_of(given), given.resume or given.extend is not None
            if again:
                reach_tracking(sweep)
                held.enter_context(driving(sweep))
            else:
                prepare(sweep, given.data is None, held)
            stage(f"sweep {sweep.name} in {sweep.folder}")
            say_how_many(sweep)
            stage(where())
            held.enter_context(ray_cluster(verbose=given.verbose, stock=not sweep.placement.lean))
            wait_for_machines(stage)
            if not again:
                sweep = with_defaults(sweep, given)  # of the cluster, whose machines may be others than this one
            settle(sweep, sweep.trial if again else given_trial(sweep, given.data is None))
            if again:
                units = read_json(f"{sweep.folder}/{CALIBRATION}")
                say_start(start_check.kept(sweep.folder))
            else:
                sweep = embed(sweep) if given.data is None else make_start(sweep, stage, console)
                measure_start(sweep)
                units = measure_units(sweep)
            if not given.resume:
                stage(check_space(sweep))
            if not given.resume or given.max_accuracy_drop is not None:
                sweep.save()  # last: from here on the sweep, or its new part, exists and can be resumed
            return conclude(sweep, *run(sweep, units))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if sweep is None or file_size(f"{sweep.folder}/settings.json") is None:
            print("interrupted before the search began; the same command begins again", file=sys.stderr)
            return 130
        name = shlex.quote(sweep.name)
        print(f"interrupted; what is done is kept, --name {name} --resume continues it", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
