"""Compare every input-gradient regularizer by finetuning one checkpoint with each of them.

    python sweeps/all_regularizers.py                      # handwritten digits, no download, a few minutes
    python sweeps/all_regularizers.py --data SHARDS --model resnet50 --checkpoint resnet50.pth --epochs 4

Prints a ranked table (regularizer, weight, accuracy, robust accuracy, heatmap similarity), the pick, and the
commands to open the MLflow UI and to train the pick further.
"""

import argparse
import dataclasses
import json
import logging
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the script runs without being installed

import optuna
import torch
from rich.console import Console

from regularizers import REGULARIZERS
from sweeps.ranking import Row, as_dict, as_text, pick, rule, table
from sweeps.settings import Sweep, create_folder, write_json
from sweeps.tracking import check_tracking, start_sweep
from trainer.calibrate import calibrate
from trainer.config import Trial, UsageError
from trainer.data import train_loader
from trainer.digits import write_digits
from trainer.fit import count_classes, fit, prepare_model
from trainer.locations import absolute
from trainer.models import build_model, load_weights
from trainer.ray_trial import Placement
from trainer.shards import read_shards

console = Console()

# Two grey levels of 255 are nothing to thick strokes on black; eight separate good heatmaps from bad ones.
DIGITS: dict[str, Any] = {
    "model": "resnet8",
    "epochs": 2,
    "images_per_epoch": 1024,
    "batch_size": 32,
    "pgd_eps": 8 / 255,
}
PRETRAINING: dict[str, Any] = {"epochs": 3, "images_per_epoch": 3840, "learning_rate": 0.05, "batch_norm": "flow"}


def parse() -> argparse.Namespace:
    """Command line; every default is shown by --help."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n\n")[0],
        usage="%(prog)s [options]",
        epilog="Without --data the embedded default runs: handwritten digits and a small network pretrained on them.",
    )
    what = parser.add_argument_group("what to train")
    what.add_argument("--data", metavar="WHERE", help="shards: folder or URL (http, s3, gs; braces expand)")
    what.add_argument("--model", help="such as resnet20, resnet50 or timm:NAME (default: resnet8, for the digits)")
    what.add_argument("--checkpoint", metavar="FILE", help="weights to finetune: .pt, .pth or .safetensors")
    what.add_argument("--epochs", type=int, metavar="N", help="per trial (default 2)")
    what.add_argument(
        "--images-per-epoch", type=int, metavar="N", help="over all workers (default: the training split, once)"
    )
    what.add_argument("--batch-size", type=int, metavar="N", help="images per worker and step (default 64; digits 32)")
    what.add_argument("--learning-rate", type=float, metavar="X", help="of SGD (default 0.003)")
    what.add_argument(
        "--pgd-eps", type=float, metavar="X", help="attack radius in pixel values of 255 (default 2; digits 8)"
    )
    search = parser.add_argument_group("what to compare")
    search.add_argument("--regularizers", metavar="A,B", help=f"of {', '.join(sorted(REGULARIZERS))} (default all)")
    search.add_argument(
        "--trials-per-regularizer", type=int, metavar="N", default=1, help="weights tried for each (default 1)"
    )
    search.add_argument(
        "--seed", type=int, metavar="N", default=0, help="of search, data order and attacks (default 0)"
    )
    where = parser.add_argument_group("where it runs")
    where.add_argument(
        "--workers-per-trial", type=int, metavar="N", default=1, help="DDP processes of each trial (default 1)"
    )
    where.add_argument(
        "--gpus-per-worker", type=float, metavar="X", help="default 1 where there are GPUs, else 0 (gloo on CPU)"
    )
    where.add_argument("--max-concurrent", type=int, metavar="N", help="trials at once (default: as many as fit)")
    kept = parser.add_argument_group("where it is kept")
    kept.add_argument(
        "--storage", metavar="FOLDER", default="runs", help="folder for everything that is written (default ./runs)"
    )
    kept.add_argument("--tracking-uri", metavar="URI", help="of MLflow (default: an SQLite file in the storage folder)")
    kept.add_argument("--name", help="of the sweep (default: the date and time)")
    kept.add_argument("--resume", action="store_true", help="continue the sweep --name with its own settings")
    return parser.parse_args()


def make_sweep(given: argparse.Namespace) -> Sweep:
    """The sweep the command line asks for, its folder made, its data and checkpoint ready."""
    storage = str(Path(given.storage).expanduser().resolve())
    if given.resume:
        if not given.name:
            raise UsageError("--resume needs --name: which sweep shall go on?")
        return Sweep.load(storage, given.name)
    gpus = given.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if torch.cuda.is_available() else 0.0
    asked = {
        key: getattr(given, key)
        for key in ("model", "epochs", "images_per_epoch", "batch_size", "learning_rate")
        if getattr(given, key) is not None
    }
    if given.pgd_eps is not None:
        asked["pgd_eps"] = given.pgd_eps / 255
    if given.data is None:
        if given.checkpoint:
            raise UsageError("--checkpoint needs --data: the embedded digits pretrain a checkpoint of their own")
        settings = DIGITS | asked | {"data": str(Path(storage) / "digits")}
    else:
        if given.model is None:
            raise UsageError("--data needs --model: which architecture is to be finetuned?")
        data = absolute(given.data)
        defaults: dict[str, Any] = {"epochs": 2, "batch_size": 64, "images_per_epoch": read_shards(data, "train").total}
        read_shards(data, "val")
        checkpoint = absolute(given.checkpoint) if given.checkpoint else None
        settings = defaults | asked | {"data": data, "checkpoint": checkpoint}
    sweep = Sweep(
        name=given.name or time.strftime("sweep-%Y%m%d-%H%M%S"),
        storage=storage,
        tracking_uri=given.tracking_uri or f"sqlite:///{storage}/mlflow.db",
        trial=Trial(seed=given.seed, **settings),
        regularizers=tuple(given.regularizers.split(",")) if given.regularizers else tuple(sorted(REGULARIZERS)),
        trials_per_regularizer=given.trials_per_regularizer,
        placement=Placement(workers=given.workers_per_trial, gpus_per_worker=gpus),
        max_concurrent=given.max_concurrent,
        seed=given.seed,
    )
    build_model(sweep.trial.model, classes=2)  # refuses an unknown name
    if given.data is not None:
        check_start(sweep.trial, sweep.placement.workers)
    if given.tracking_uri:
        check_tracking(sweep.tracking_uri)
    create_folder(sweep)
    if given.data is None:
        stage("writing handwritten digits as shards")
        write_digits(Path(sweep.trial.data))
        stage(f"pretraining {sweep.trial.model} on them")
        sweep = dataclasses.replace(sweep, trial=dataclasses.replace(sweep.trial, checkpoint=pretrain(sweep)))
    return sweep


def check_start(trial: Trial, workers: int) -> None:
    """Refuse data, a model or a checkpoint that do not fit before anything is written."""
    train = read_shards(trial.data, "train")
    train_loader(
        train, rank=0, world_size=workers, seed=0, steps=1, batch_size=trial.batch_size, loader_workers=0
    )  # refuses too few images
    model = prepare_model(dataclasses.replace(trial, checkpoint=None), count_classes(trial.data))
    if trial.checkpoint is not None:
        load_weights(model, trial.checkpoint)


def pretrain(sweep: Sweep) -> str:
    """Train the start checkpoint of the embedded default, in this process."""
    path = sweep.folder / "pretrained.pt"
    trial = dataclasses.replace(sweep.trial, **PRETRAINING, robust_images=1)
    states: list[dict] = []
    fit(trial, lambda metrics, state: states.append(state | {"accuracy": metrics["val/accuracy"]}))
    partial = path.with_suffix(".partial")
    torch.save({"model": states[-1]["model"]}, partial)
    partial.replace(path)
    console.print(f"  accuracy {states[-1]['accuracy']:.3f} on val", highlight=False)
    return str(path)


def units_of(sweep: Sweep) -> dict[str, float]:
    """Calibrated unit of every weight, computed once per sweep."""
    path = sweep.folder / "calibration.json"
    if path.exists():
        return json.loads(path.read_text())
    stage("calibrating the weight of each regularizer")
    device = torch.device("cuda" if sweep.placement.gpus_per_worker and torch.cuda.is_available() else "cpu")
    units = calibrate(sweep.trial, sweep.names, device)
    write_json(path, units)
    return units


def run(sweep: Sweep) -> list[Row]:
    """All trials of the sweep, recorded; returns them as they ended."""
    from sweeps.tuning import local_cluster, run_sweep, slots

    units = units_of(sweep)
    params = sweep.trial.to_dict() | {
        "regularizers": ",".join(sweep.names),
        "trials_per_regularizer": sweep.trials_per_regularizer,
        "workers_per_trial": sweep.placement.workers,
        "selection_rule": rule(sweep.max_accuracy_drop),
    }
    for key in ("regularizer", "weight"):
        params.pop(key)
    with start_sweep(sweep.tracking_uri, sweep.name, params, Path(sweep.storage) / "mlartifacts") as tracking:
        stage("starting Ray")
        with local_cluster():
            stage(f"running {sweep.total_trials} trials, {slots(sweep)} at a time")
            rows = run_sweep(sweep, tracking, units)
        picked = pick(rows, sweep.max_accuracy_drop)
        result = as_dict(rows, picked, sweep.max_accuracy_drop)
        write_json(sweep.folder / "result.json", result)
        best = {"best/accuracy": picked.accuracy, "best/robust_accuracy": picked.robust_accuracy} if picked else {}
        tracking.log_result(best, result, as_text(rows, picked))
    return rows


def conclude(sweep: Sweep, rows: list[Row]) -> int:
    """Print the table, the pick and what to do next; the exit status."""
    picked = pick(rows, sweep.max_accuracy_drop)
    console.print(table(rows, picked))
    failed = [row for row in rows if row.status == "failed"]
    if picked is None:
        console.print("No baseline trial finished, so there is nothing to compare with: no pick.")
    else:
        reason = rule(sweep.max_accuracy_drop)
        console.print(f"Pick: {picked.regularizer}, trial {picked.trial_id}: {reason}.", highlight=False)
    python = shlex.quote(os.path.relpath(sys.executable) if sys.prefix != sys.base_prefix else "python")
    storage = "" if Path(sweep.storage) == Path("runs").resolve() else f" --storage {shlex.quote(sweep.storage)}"
    ui = f"{python} -m mlflow ui --backend-store-uri {shlex.quote(sweep.tracking_uri)}"
    if not sweep.tracking_uri.startswith("http"):
        console.print(f"Look at it:  {ui}", soft_wrap=True, highlight=False)
    else:
        console.print(f"Look at it:  {sweep.tracking_uri}", soft_wrap=True, highlight=False)
    if picked is not None:
        console.print(
            f"Train the pick further:  {python} sweeps/resume_best.py --name {shlex.quote(sweep.name)}{storage}",
            soft_wrap=True,
            highlight=False,
        )
    if failed or len(rows) < sweep.total_trials:
        console.print(f"{len(failed)} of {sweep.total_trials} trials failed; see {sweep.folder / 'tune'}")
    return 0 if picked is not None and not failed and len(rows) == sweep.total_trials else 1


def stage(name: str) -> None:
    """Say what happens now."""
    console.print(f"[bold]>[/bold] {name}", highlight=False)


def main() -> int:
    """Run the sweep; the exit status."""
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    given = parse()
    try:
        sweep = make_sweep(given)
        if not (sweep.folder / "settings.json").exists():
            sweep.save()
        stage(f"sweep {sweep.name} in {sweep.folder}")
        return conclude(sweep, run(sweep))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; what is done is kept, --name SWEEP --resume continues it", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
