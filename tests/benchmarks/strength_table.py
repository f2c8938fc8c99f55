"""Train penalties at many strengths, and keep how accurate and robust each is after every epoch.

    python tests/benchmarks/strength_table.py --data cifar10-shards --checkpoint resnet20-cifar10.pt --out cifar.csv

Writes a row for each trial and epoch; `search_quality.py --table cifar.csv` replays searches on them. The same command
goes on where it was interrupted: trials that are in the file whole are not trained again, and no line is half written.
"""

import argparse
import csv
import io
import multiprocessing
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from trainer.cache import ShardCache
from trainer.calibrate import calibrate
from trainer.config import Trial
from trainer.epoch_report import EpochReport
from trainer.evaluate.measure import evaluate
from trainer.evaluate.plan import Plan, own_attack
from trainer.fit import State, fit, prepare_model
from trainer.locations import whole_file
from trainer.metrics import VAL_ACCURACY, VAL_ROBUST_ACCURACY, WORST, Metrics
from trainer.shards import evaluation_splits

COLUMNS = ("regularizer", "strength", "seed", "epoch", "accuracy", "robust_accuracy")
Key = tuple[str, str, str]  # regularizer, strength, seed


def measure(trial: Trial, attacked: int, epoch: int, state: State) -> Metrics:
    """Accuracy on all of val, robust accuracy on some of it, after any epoch."""
    model = prepare_model(replace(trial, checkpoint=None), 10)
    model.load_state_dict(state["model"])
    val, _ = evaluation_splits(trial.data)
    plan = Plan(attacked=attacked, attacks=(own_attack(trial),))
    return evaluate(model, val, trial, plan, torch.device("cpu"))


def train(attacked: int, job: tuple[Key, Trial]) -> list[tuple[str, ...]]:
    """Rows of one trial."""
    torch.set_num_threads(1)
    key, trial = job
    rows: list[tuple[str, ...]] = []

    def report(epoch: EpochReport, state: State) -> None:
        metrics = WORST if epoch.diverged else measure(trial, attacked, epoch.epoch, state)
        figures = (f"{metrics[name]:.4f}" for name in (VAL_ACCURACY, VAL_ROBUST_ACCURACY))
        rows.append((*key, str(epoch.epoch), *figures))

    fit(trial, report)
    rows += [(*rows[-1][:3], str(epoch), *rows[-1][4:]) for epoch in range(len(rows) + 1, trial.epochs + 1)]  # diverged
    return rows


def jobs(
    trial: Trial, names: list[str], strengths: list[float], seeds: int, done: set[Key]
) -> Iterator[tuple[Key, Trial]]:
    """Trials that are left; one seed after the other, so that the table is of use before it is whole."""
    units = calibrate(trial, names, torch.device("cpu"), ShardCache())
    for seed in map(str, range(seeds)):
        for name, strength in [("none", 0.0), *((name, strength) for strength in strengths for name in names)]:
            key = name, f"{strength:g}", seed
            if key not in done:
                weight = strength * units.get(name, 0.0)
                yield key, replace(trial, regularizer=name, weight=weight, seed=int(seed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--regularizers", default="datagrad,l2,spectreg,ssim,tv_abs,cor")
    parser.add_argument("--strengths", type=int, default=9, help="how many, from 0.1 to 1,000")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--images-per-epoch", type=int, default=3200)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--attacked", type=int, default=500)
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    trial = Trial(
        data=args.data, model=args.model, checkpoint=args.checkpoint, epochs=args.epochs, batch_size=args.batch_size,
        images_per_epoch=args.images_per_epoch, robust_images=32,  # `measure` attacks more of them
    )  # fmt: skip
    rows = list(csv.reader(args.out.open()))[1:] if args.out.exists() else []
    counts = Counter((row[0], row[1], row[2]) for row in rows)
    done = {key for key, count in counts.items() if count == args.epochs}
    strengths = [float(f"{strength:.3g}") for strength in np.logspace(-1, 3, args.strengths)]
    left = jobs(trial, args.regularizers.split(","), strengths, args.seeds, done)
    with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
        for found in pool.imap_unordered(partial(train, args.attacked), left):
            rows += found
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows([COLUMNS, *rows])
            with whole_file(str(args.out)) as stream:
                stream.write(text.getvalue().encode())
            print(f"{len(rows) // args.epochs} trials: {found[-1]}", flush=True)


if __name__ == "__main__":
    main()
