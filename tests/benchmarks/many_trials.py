"""Whether the driver of a sweep stays as quick and as small over 1,000 trials.

    python tests/benchmarks/many_trials.py [--trials 1000]

Search, scheduler, callback, event log and uploader are the sweep's own, MLflow is a real database; only training is a
formula. Prints, for each tenth of the trials, the mean milliseconds a trial cost the driver in each of them, trials per
second and the driver's resident memory. A column that grows does not scale.
"""

import argparse
import functools
import math
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import optuna
import psutil
from ray import cloudpickle, tune
from ray.tune.execution.tune_controller import TuneController

from sweeps import tuning
from sweeps.callback import SweepCallback
from sweeps.cluster import ray_cluster
from sweeps.drive import Shared
from sweeps.proposals import proposal, weight_of
from sweeps.recording import start_sweep
from sweeps.search import METRIC
from sweeps.searcher import StudySearcher
from sweeps.settings import Sweep
from sweeps.tracking.upload import Uploader
from trainer.config import Trial
from trainer.trial_log import TrialLog

EPOCHS, STEPS, METRICS = 2, 10, 10
UNITS = {name: 1.0 for name in ("l2", "tv", "mse", "ssim", "cor", "datagrad", "spectreg", "psnr", "grad_diff")}
WATCHED = {
    "suggest": (StudySearcher, ("suggest",)),
    "search told": (StudySearcher, ("on_trial_result", "on_trial_complete")),
    "search kept": (StudySearcher, ("save",)),
    "callback": (SweepCallback, ("on_trial_start", "on_trial_result", "on_trial_complete", "on_step_end", "get_state")),
    "Tune's snapshot": (TuneController, ("checkpoint",)),
    "uploader": (Uploader, ("send",)),
}


def pretend(config: dict[str, Any], shared: Shared) -> None:
    """What a trial writes into its folder and reports to Tune, without the training."""
    asked = proposal(config)
    told = {"regularizer": asked["regularizer"], "weight": weight_of(asked), "seed": asked["seed"]}
    trial = Trial.from_dict(shared.trial | told)
    log = TrialLog(f"{shared.folder}/{tune.get_context().get_trial_id()}", trial.digest())
    log.configured(trial.to_dict())
    robust = 0.5 * math.exp(-((math.log10(max(trial.weight, 1e-9)) - 1) ** 2)) if trial.weight else 0.1
    for epoch in range(1, EPOCHS + 1):
        for step in range((epoch - 1) * STEPS + 1, epoch * STEPS + 1):
            log.record({f"step/{number}": robust for number in range(METRICS)}, step)
        log.report({METRIC: robust * epoch / EPOCHS, "val/accuracy": 0.9}, step)
        images = float(epoch * trial.images_per_epoch)
        told = {METRIC: robust * epoch / EPOCHS, "val/accuracy": 0.9, "epoch": float(epoch), "images_seen": images}
        tune.report(told | {"digest": trial.digest()})


def watch(spent: dict[str, float]) -> None:
    """Sum the seconds that calls from outside take."""
    inside = threading.local()
    for name, (owner, methods) in WATCHED.items():
        for method in methods:
            original = getattr(owner, method)

            @functools.wraps(original)
            def timed(*given: Any, original=original, name=name, **named: Any) -> Any:
                if getattr(inside, "busy", False):
                    return original(*given, **named)
                inside.busy, started = True, time.perf_counter()
                try:
                    return original(*given, **named)
                finally:
                    inside.busy = False
                    spent[name] += time.perf_counter() - started

            setattr(owner, method, timed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--trials", type=int, default=1000)
    given = parser.parse_args()
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    spent: dict[str, float] = defaultdict(float)
    watch(spent)
    tuning.drive_trial = pretend
    tenth, rows, process = given.trials // 10, [], psutil.Process()
    ended = SweepCallback.on_trial_complete

    def counted(*arguments: Any, **named: Any) -> None:
        ended(*arguments, **named)
        counted.trials += 1
        if counted.trials % tenth == 0:
            now = time.perf_counter()
            rows.append((dict(spent), now - counted.since, process.memory_info().rss / 2**20))
            spent.clear()
            counted.since = now

    counted.trials = 0
    SweepCallback.on_trial_complete = counted
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(data=folder, model="resnet8", epochs=EPOCHS)
        sweep = Sweep(
            name="many", storage=folder, tracking_uri=f"sqlite:///{folder}/mlflow.db", trial=trial,
            regularizers=tuple(UNITS), trials_per_regularizer=given.trials // (len(UNITS) + 1),
        )  # fmt: skip
        Path(sweep.folder).mkdir()
        with start_sweep(sweep, {}) as recording, ray_cluster(2):
            counted.since = time.perf_counter()
            tuning.run_sweep(sweep, recording, UNITS)
        kept = sum(path.stat().st_size for path in Path(sweep.folder, "tune").glob("*.json")) / given.trials
        written = recording.log.size() / given.trials
    print(f"Of each trial, Tune keeps {kept / 1e3:.1f} kB and the event log {written / 1e3:.1f} kB.")
    print("| trials to | " + " | ".join(WATCHED) + " | trials/s | memory |\n|" + "---|" * (len(WATCHED) + 3))
    for number, (costs, seconds, memory) in enumerate(rows, start=1):
        figures = " | ".join(f"{costs.get(name, 0) / tenth * 1e3:.1f}" for name in WATCHED)
        print(f"| {number * tenth} | {figures} | {tenth / seconds:.1f} | {memory:.0f} MB |")


if __name__ == "__main__":
    main()
