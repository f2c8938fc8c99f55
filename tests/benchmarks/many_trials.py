"""Whether the driver of a sweep stays as quick and as small over 10,000 trials, 1,000 of them at once.

    python tests/benchmarks/many_trials.py [--trials 10000 --at-once 1000] [--tpe-every 10] [--keep-mlflow-away]

Tune, search, scheduler, callback, event log and uploader are the sweep's own, and MLflow is a real database. The
processes of the trials are not there: what they would write and report is a formula, taken in the driver and counted
nowhere. Each trial that runs has a placement group of the real head. Prints a row whenever a tenth of the trials has
ended: mean processor milliseconds that a trial cost the driver since the row before, processor seconds of Tune's last
snapshot, and what there is at that moment. What a trial costs should not grow.
"""

import argparse
import functools
import math
import os
import tempfile
import threading
import time
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

os.environ |= {"RAY_prestart_worker_first_driver": "0"}  # no process for each of the CPUs, which are not there

import optuna
import psutil
import ray
from ray.air.execution._internal import RayActorManager
from ray.air.execution.resources import ResourceManager
from ray.tune.execution import tune_controller
from ray.tune.execution.tune_controller import TuneController
from ray.tune.result import TRIAL_INFO
from ray.util import placement_group, remove_placement_group
from rich.console import Console

from sweeps import tuning
from sweeps.callback import SweepCallback
from sweeps.cluster import ray_cluster
from sweeps.early_stopping import FairASHA
from sweeps.folder import create_folder
from sweeps.messages import told_to
from sweeps.proposals import proposal, weight_of
from sweeps.recording import start_sweep
from sweeps.search import METRIC
from sweeps.searcher import StudySearcher
from sweeps.settings import Sweep
from sweeps.terminal import Terminal
from sweeps.tracking.upload import Uploader
from trainer.config import Trial
from trainer.locations import file_size, list_folder
from trainer.trial_log import TrialLog

EPOCHS, STEPS, METRICS = 2, 10, 10
UNITS = {name: 1.0 for name in ("l2", "tv", "mse", "ssim", "cor", "datagrad", "spectreg", "psnr", "grad_diff")}
WATCHED = {
    "tell the search": (StudySearcher, ("on_trial_result", "on_trial_complete")),
    "early stopping": (FairASHA, ("on_trial_result", "on_trial_complete")),
    "callback": (
        SweepCallback,
        ("on_step_begin", "on_trial_start", "on_trial_result", "on_trial_complete", "on_step_end", "get_state"),
    ),
    "send to MLflow": (Uploader, ("send",)),
}


class Pretender:
    """Stands for the process of a trial; a method of it is called as one of an actor is.

    Args:
        config: of the trial.
        trial: what all trials share.
        folder: of all trials.
    """

    def __init__(self, config: dict[str, Any], trial: Trial, folder: str) -> None:
        self.trial, self.folder = trial, folder
        self._begin(config)

    def _begin(self, told_by_tune: dict[str, Any]) -> None:
        config = dict(told_by_tune)
        trial_id = config.pop(TRIAL_INFO).trial_id
        asked = proposal(config)
        told = {"regularizer": asked["regularizer"], "weight": weight_of(asked), "seed": asked["seed"]}
        trial = Trial.from_dict(self.trial.to_dict() | told)
        self.config, self.trial_id, self.epoch, self.digest, weight = config, trial_id, 0, trial.digest(), trial.weight
        self.robust = 0.5 * math.exp(-((math.log10(max(weight, 1e-9)) - 1) ** 2)) if weight else 0.1
        self.log = TrialLog(f"{self.folder}/{trial_id}", self.digest)
        self.log.configured(trial.to_dict())

    def train(self) -> dict[str, Any]:
        """Write and report an epoch; after the last, that it was the last."""
        if self.epoch == EPOCHS:
            return {"done": True, "trial_id": self.trial_id, "__duplicate__": True}
        self.epoch += 1
        for step in range((self.epoch - 1) * STEPS + 1, self.epoch * STEPS + 1):
            self.log.record({f"step/{number}": self.robust for number in range(METRICS)}, step)
        metrics = {METRIC: self.robust * self.epoch / EPOCHS, "val/accuracy": 0.9}
        self.log.report(metrics, step)
        now = time.time()
        tunes = {"timestamp": int(now), "date": time.ctime(now), "pid": 1, "hostname": "h", "node_ip": "127.0.0.1"}
        tunes |= {"time_total_s": 1.0, "time_this_iter_s": 1.0, "time_since_restore": 1.0, "done": False}
        tunes |= {"training_iteration": self.epoch, "iterations_since_restore": self.epoch, "config": self.config}
        images = float(self.epoch * self.trial.images_per_epoch)
        own = {"epoch": float(self.epoch), "step": step, "images_seen": images, "digest": self.digest}
        return metrics | own | tunes | {"trial_id": self.trial_id, "checkpoint_dir_name": None}

    def reset(self, config: dict[str, Any], **_: Any) -> bool:
        """Go on with the next trial."""
        self._begin(config)
        return True

    def __getattr__(self, name: str) -> Any:
        """Methods of which nothing comes back."""
        if name.startswith("__") and name not in ("__ray_ready__", "__ray_terminate__"):
            raise AttributeError(name)
        return lambda *_, **__: None


class Handle:
    """Of a pretender; each call is done at once, its result an object of Ray."""

    def __init__(self, pretender: Pretender) -> None:
        self._pretender = pretender

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._pretender, name)
        return SimpleNamespace(remote=lambda *given, **named: ray.put(method(*given, **named)))


class Slots(ResourceManager):
    """Room for some trials, each with a placement group of its own."""

    def __init__(self, slots: int) -> None:
        self.free, self.wanted = slots, 0

    def request_resources(self, resource_request: Any) -> None:
        self.wanted += 1

    def cancel_resource_request(self, resource_request: Any) -> None:
        self.wanted -= 1

    def has_resources_ready(self, resource_request: Any) -> bool:
        return self.free > 0 and self.wanted > 0

    def acquire_resources(self, resource_request: Any) -> Any:
        self.free, self.wanted = self.free - 1, self.wanted - 1
        group = placement_group([{"CPU": 1}])
        group.wait(60)
        return SimpleNamespace(group=group, resource_request=resource_request)

    def free_resources(self, acquired_resource: Any) -> None:
        self.free += 1
        remove_placement_group(acquired_resource.group)

    def clear(self) -> None:
        """Nothing is left to Ray."""


class Actors(RayActorManager):
    """Tune's own, with pretenders for actors."""

    trial: Trial
    folder: str

    def _try_start_actors(self, max_actors: int | None = None) -> int:
        started = 0
        for request, waiting in self._resource_request_to_pending_actors.items():
            while waiting and self._resource_manager.has_resources_ready(request):
                room, tracked = self._resource_manager.acquire_resources(request), waiting.pop(0)
                _, given, _ = self._pending_actors_to_attrs.pop(tracked)
                pretender = Pretender(given["config"], self.trial, self.folder)
                self._live_actors_to_ray_actors_resources[tracked] = (Handle(pretender), room)
                self._live_resource_cache = None
                future = ray.put(None)
                self._tracked_actors_to_state_futures[tracked].add(future)
                self._actor_state_events.track_future(
                    future=future,
                    on_result=functools.partial(self._started, tracked, future),
                    on_error=functools.partial(self._actor_start_failed, tracked),
                )
                self._enqueue_cached_actor_tasks(tracked_actor=tracked)
                started += 1
        return started

    def _try_kill_actor(self) -> bool:
        if not self._live_actors_to_kill:
            return False
        tracked = self._live_actors_to_kill.pop()
        self._cleanup_actor_futures(tracked)
        self._actor_stop_resolved(tracked)
        return True

    def _started(self, tracked: Any, future: Any, _: Any) -> None:
        self._actor_start_resolved(tracked_actor=tracked, future=future)


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
                inside.busy, started = True, time.thread_time()
                try:
                    return original(*given, **named)
                finally:
                    inside.busy = False
                    spent[name] += time.thread_time() - started

            setattr(owner, method, timed)
    save = TuneController.save_to_dir

    def saved(controller: TuneController) -> None:
        started = time.thread_time()
        save(controller)
        spent["last snapshot"] = time.thread_time() - started

    TuneController.save_to_dir = saved


def suggest_by_chance(every: int, spent: dict[str, float], counts: dict[str, int]) -> None:
    """Let TPE propose and be timed once in `every` times; what it costs depends on the trials so far."""
    suggest, chance = StudySearcher.suggest, optuna.samplers.RandomSampler(seed=0)

    def suggested(searcher: StudySearcher, trial_id: str) -> dict[str, Any]:
        counts["all"] += 1
        if counts["all"] % every:
            tpe, searcher.study.sampler = searcher.study.sampler, chance
            try:
                return suggest(searcher, trial_id)
            finally:
                searcher.study.sampler = tpe
        started = time.thread_time()
        try:
            return suggest(searcher, trial_id)
        finally:
            counts["tpe"] += 1
            spent["suggest"] += time.thread_time() - started

    StudySearcher.suggest = suggested


class Counter:
    """Keeps a row whenever a tenth of the trials has ended.

    Args:
        trials: in all.
        spent: seconds by what they were spent on.
        counts: of suggestions that were timed.
        recording: of the sweep.
    """

    def __init__(self, trials: int, spent: dict[str, float], counts: dict[str, int], recording: Any) -> None:
        self.tenth, self.spent, self.counts, self.recording = max(trials // 10, 1), spent, counts, recording
        self.trials, self.since, self.process = 0, time.perf_counter(), psutil.Process()
        self.head = [one for one in self.process.children(recursive=True) if one.name() in ("gcs_server", "raylet")]

    def ended(self) -> None:
        self.trials += 1
        if self.trials % self.tenth:
            return
        now, memory = time.perf_counter(), self.process.memory_info().rss / 2**20
        head = sum(one.memory_info().rss for one in self.head) / 2**20
        log, cursor = self.recording.log, self.recording.uploader().cursors.read("sweep")
        behind = sum(type(event).__name__ == "TrialEnded" for event, _ in log.read(cursor.offset))
        row = [f"{self.spent['suggest'] / self.counts['tpe'] * 1e3:.1f}" if self.counts["tpe"] else "-"]
        row += [f"{self.spent[name] / self.tenth * 1e3:.1f}" for name in WATCHED]
        row += [f"{self.spent['last snapshot']:.2f}", f"{self.tenth / (now - self.since):.1f}", f"{behind}"]
        row += [f"{memory:.0f}", f"{head:.0f}", f"{log.size() / 1e6:.2f}"]
        print(f"| {self.trials} | " + " | ".join(row) + " |", flush=True)
        for name in ("suggest", *WATCHED):
            self.spent[name] = 0.0
        self.counts["tpe"] = 0
        self.since = time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--at-once", type=int, default=1_000)
    parser.add_argument("--tpe-every", type=int, default=1, help="let chance make all proposals but each of these")
    parser.add_argument("--storage", help="a folder or URL that stays; by default a temporary folder")
    parser.add_argument("--keep-mlflow-away", action="store_true", help="what the driver costs without it")
    given = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    spent: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    watch(spent)
    suggest_by_chance(given.tpe_every, spent, counts)
    with tempfile.TemporaryDirectory() as folder:
        away = "http://127.0.0.1:9"
        sweep = Sweep(
            name="many",
            storage=given.storage or folder,
            tracking_uri=away if given.keep_mlflow_away else f"sqlite:///{folder}/mlflow.db",
            trial=Trial(data=folder, model="resnet8", epochs=EPOCHS, images_per_epoch=1024),
            regularizers=tuple(UNITS),
            trials_per_regularizer=given.trials // (len(UNITS) + 1),
            max_concurrent=given.at_once,
            local_dir=folder if given.storage else None,
        )
        create_folder(sweep)
        Actors.trial, Actors.folder = sweep.trial, sweep.trials_folder
        tune_controller.RayActorManager = lambda resource_manager: Actors(resource_manager=Slots(given.at_once))
        with ray_cluster(given.at_once):
            recording = start_sweep(sweep, {})
            counter, complete = Counter(given.trials, spent, counts, recording), SweepCallback.on_trial_complete

            def counted(*arguments: Any, **named: Any) -> None:
                complete(*arguments, **named)
                counter.ended()

            SweepCallback.on_trial_complete = counted
            columns = [
                *(f"{name}, ms" for name in ("suggest", *WATCHED)),
                "last snapshot, s",
                "trials/s",
                "ended, not in MLflow",
            ]
            columns += ["driver, MB", "head, MB", "event log, MB"]
            print("| trials | " + " | ".join(columns) + " |\n|" + "---|" * (len(columns) + 1))
            with recording, open(os.devnull, "w") as nowhere, told_to(Terminal(Console(file=nowhere))):
                began = time.perf_counter()
                rows = tuning.run_sweep(sweep, recording, UNITS)
                print(f"{len(rows)} trials in {time.perf_counter() - began:.0f} s")
        state = next(name for name in list_folder(f"{sweep.folder}/tune") or () if name.startswith("experiment_state"))
        kept = (file_size(f"{sweep.folder}/tune/{state}") or 0) / given.trials
        written = recording.log.size() / given.trials
        print(f"Of each trial, Tune keeps {kept / 1e3:.1f} kB, the event log {written / 1e3:.1f} kB.")


if __name__ == "__main__":
    main()
