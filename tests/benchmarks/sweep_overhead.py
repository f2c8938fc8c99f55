"""What a sweep costs beside the training in it.

    python tests/benchmarks/sweep_overhead.py                      # one worker per trial, one trial at a time
    python tests/benchmarks/sweep_overhead.py --workers 2

Prints, of rounds in which both take their turn, for a sweep and for a bare nest (a Tune function that fits a
TorchTrainer, with Ray's defaults) of the same trials:

- use: seconds between the first step and the last report of all trials ÷ (seconds of the run × trials at a time)
- start: seconds from one trial's last report to the next one's first step; the first trial's are from the run's start

and what recording 10 metrics at every step costs, in steps.
"""

import argparse
import dataclasses
import multiprocessing
import os
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import ray
import torch
from mlflow import MlflowClient
from mlflow.entities import Metric
from ray import train, tune
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

from sweeps.cluster import ray_cluster
from sweeps.recording import start_sweep
from sweeps.settings import Sweep
from sweeps.tuning import run_sweep
from trainer.config import Trial
from trainer.data import LoaderOptions, train_loader
from trainer.digits import write_digits
from trainer.fit import make_loss, make_optimizer, prepare_model
from trainer.locations import folders_in
from trainer.placement import Placement
from trainer.preprocess import Transform
from trainer.ray_driver import WorkerConfig
from trainer.ray_trial import train_worker
from trainer.shards import read_shards
from trainer.step import set_mode, train_step
from trainer.trial_log import TrialLog, read_points, read_report

UNITS = {"l2": 1.0}


def make_sweep(folder: Path, trials: int, workers: int) -> Sweep:
    """One trial after the other; each trains for some seconds."""
    trial = Trial(
        data=str(folder / "digits"), model="resnet8", epochs=2, images_per_epoch=1024, batch_size=32 // workers,
        image_size=32, augment=False, robust_images=32, pgd_steps=2,
    )  # fmt: skip
    return Sweep(
        name="sweep", storage=str(folder), tracking_uri=f"sqlite:///{folder}/mlflow.db", trial=trial,
        regularizers=("l2",), trials_per_regularizer=trials // 2, scheduler="none", max_concurrent=1,
        placement=Placement(workers=workers),
    )  # fmt: skip


def ours(sweep: Sweep) -> tuple[float, float]:
    """Run the sweep as the script does, with everything that is recorded; when it began and the seconds it took."""
    with start_sweep(sweep, {}) as recording, ray_cluster(sweep.placement.workers):
        started = time.time()
        run_sweep(sweep, recording, UNITS)
        return started, time.time() - started


def bare(sweep: Sweep) -> tuple[float, float]:
    """Run trials of the same training as Ray's documentation nests them; when it began and the seconds it took."""

    def drive(config: dict[str, Any]) -> None:
        trial = dataclasses.replace(sweep.trial, regularizer=config["regularizer"], weight=config["weight"])
        name = tune.get_context().get_trial_id()
        storage = sweep.trials_folder
        TorchTrainer(
            lambda config: train_worker(config["worker"]),
            train_loop_config={
                "worker": WorkerConfig(
                    trial=trial.to_dict(), folder=f"{storage}/{name}", name=name, cache=sweep.placement.cache
                )
            },
            scaling_config=train.ScalingConfig(num_workers=sweep.placement.workers),
            run_config=train.RunConfig(name=name, storage_path=storage, callbacks=[TuneReportCallback()]),
        ).fit()

    root = str(Path(__file__).resolve().parents[2])
    ray.init(
        address="local",
        num_cpus=sweep.placement.workers + 1,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": root}},
    )
    # The order in which the sweep takes them, too.
    trials = [{"regularizer": name, "weight": 1.0 * (name == "l2")} for name in ("none", "l2")]
    tuner = tune.Tuner(
        drive,
        param_space=tune.grid_search(trials * (sweep.total_trials // 2)),
        tune_config=tune.TuneConfig(max_concurrent_trials=1),
        run_config=tune.RunConfig(name="tune", storage_path=str(sweep.folder), verbose=0),
    )
    started = time.time()
    tuner.fit()
    seconds = time.time() - started
    ray.shutdown()
    return started, seconds


def gaps(sweep: Sweep, started: float, seconds: float) -> tuple[float, list[float]]:
    """Use of the slot, and the seconds before each trial's first step."""
    spans = []
    for trial in folders_in(sweep.trials_folder):
        folder = f"{sweep.trials_folder}/{trial}"
        first, last = (read_report(folder, epoch) for epoch in (1, sweep.trial.epochs))
        epoch = sweep.trial.images_per_epoch / first["metrics"]["train/images_per_second"]
        trained = max(point["time"] for point in read_points(folder, 1) if "step/loss" in point["metrics"])
        spans.append((trained / 1000 - epoch, last["time"] / 1000))
    spans.sort()
    ends = [started, *(end for _, end in spans)]
    return sum(end - begin for begin, end in spans) / seconds, [
        begin - end for (begin, _), end in zip(spans, ends, strict=False)
    ]


def arm(name: str, workers: int, trials: int) -> tuple[float, list[float]]:
    """One run in a process of its own: neither arm's environment reaches the other."""
    with tempfile.TemporaryDirectory() as folder:
        sweep = make_sweep(Path(folder), trials, workers)
        write_digits(Path(sweep.trial.data))
        Path(sweep.folder).mkdir()
        return gaps(sweep, *{"sweep": ours, "bare": bare}[name](sweep))


def recording() -> tuple[float, float, float]:
    """Milliseconds of a step of the smallest model, of recording ten metrics, and of telling MLflow itself."""
    with tempfile.TemporaryDirectory() as folder:
        sweep = make_sweep(Path(folder), 2, 1)
        write_digits(Path(sweep.trial.data))
        shards, transform = read_shards(sweep.trial.data, "train"), Transform(sweep.trial.image_size, train=False)
        options = LoaderOptions(normalization=sweep.trial.normalization, batch_size=32)
        with train_loader(shards, transform, options, seed=0, steps=1) as loader:
            batch = next(iter(loader.epoch(0)))
        model = prepare_model(sweep.trial, 10)
        set_mode(model, sweep.trial.batch_norm)
        loss, optimizer = make_loss(model, sweep.trial), make_optimizer(model, sweep.trial)
        log = TrialLog(f"{folder}/t", "d")
        client = MlflowClient(sweep.tracking_uri)
        run = client.create_run("0").info.run_id
        steps, times = sweep.trial.steps_per_epoch(1), []
        for epoch in range(-1, 5):  # the first warms up
            points = [{f"step/{number}": float(step) for number in range(10)} for step in range(steps)]
            parts = [time.perf_counter()]
            for _ in points:
                train_step(loss, batch, optimizer)
            parts.append(time.perf_counter())
            for step, values in enumerate(points):
                log.record(values, epoch * steps + step)
            log.report({}, steps)
            parts.append(time.perf_counter())
            for step, values in enumerate(points):
                metrics = [Metric(name, value, 0, epoch * steps + step) for name, value in values.items()]
                client.log_batch(run, metrics=metrics)
            parts.append(time.perf_counter())
            times.append([(end - begin) / steps * 1e3 for begin, end in pairwise(parts)])
        return tuple(statistics.median(column) for column in zip(*times[1:], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--workers", type=int, default=1, help="of each trial")
    parser.add_argument("--trials", type=int, default=6, help="of each run; an even number")
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(1)
    step, recorded, told = recording()
    print(
        f"A step takes {step:.1f} ms; ten metrics of it: recorded {recorded / step:.2%}, told MLflow {told / step:.0%}"
    )
    context = multiprocessing.get_context("spawn")
    figures: dict[str, list[tuple[float, list[float]]]] = {"bare": [], "sweep": []}
    for _ in range(given.rounds):
        for name, found in figures.items():
            with ProcessPoolExecutor(1, mp_context=context) as own:
                found.append(own.submit(arm, name, given.workers, given.trials).result())
            use, starts = found[-1]
            print(f"{name}: use {use:.2f}, starts {' '.join(f'{second:.1f}' for second in starts)}", flush=True)
    print("| | use | first start | further starts |\n|---|---|---|---|")
    for name, found in figures.items():
        use, first = statistics.median(use for use, _ in found), statistics.median(starts[0] for _, starts in found)
        further = [second for _, starts in found for second in starts[1:]]
        spread = f"{statistics.median(further):.1f} s ({min(further):.1f} to {max(further):.1f})"
        print(f"| {name} | {use:.2f} | {first:.1f} s | {spread} |")


if __name__ == "__main__":
    main()
