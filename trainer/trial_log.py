"""The log of a trial, in its own folder of the storage; only rank 0 writes it.

    trial.json               what the worker trains with, and the digest of it
    points/epoch_0001.jsonl  one line for each step of the epoch, and for each sample of system metrics
    reports/epoch_0001.json  what was measured after the epoch
    gallery.png              heatmaps of the trained model
    failure.json             why the trial failed, where the error is non-retryable

Each file is there whole or not at all. An epoch that is trained again, after a kill, finds its earlier
points and adds only what is missing: readers meet every point once, with the time at which it was measured.
"""

import contextlib
import json
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from trainer.errors import UsageError
from trainer.locations import open_file, read_json, whole_file

log = logging.getLogger(__name__)

TRIAL, GALLERY, FAILURE = "trial.json", "gallery.png", "failure.json"
SPOILED = (json.JSONDecodeError, UnicodeDecodeError)
EVERY = 15.0  # seconds between two writes of an epoch's points

Metrics = dict[str, float]
Point = dict[str, Any]  # step, time in ms since 1970, metrics


class TrialLog:
    """Writes a trial's log; storage that cannot be written for a while costs no point and ends no training.

    Args:
        folder: folder of the trial, a path or URL.
        epoch: number of the epoch in training, counted from 1.
    """

    def __init__(self, folder: str, digest: str, epoch: int = 1) -> None:
        self.folder, self.digest = folder, digest
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._waiting: dict[str, bytes] = {}  # files by name, oldest first
        self._changed = False
        self._begin(epoch)

    def _begin(self, epoch: int) -> None:
        self.epoch = epoch
        self._points: list[Point] = []
        with contextlib.suppress(OSError):  # no storage for now: an earlier attempt's points are then written anew
            self._points = read_points(self.folder, epoch)
        self._last = {name: point["step"] for point in self._points for name in point["metrics"]}

    def configured(self, settings: dict[str, Any]) -> None:
        """Keep what the worker trains with."""
        self.keep(TRIAL, json.dumps(settings | {"digest": self.digest}).encode())

    def keep(self, name: str, content: bytes) -> None:
        """Keep a file of the trial."""
        with self._lock:
            self._waiting[name] = content
        self.flush()

    def record(self, metrics: Metrics, step: int) -> None:
        """Take the metrics of one step, from any thread; those that an earlier attempt took are left out."""
        with self._lock:
            new = {name: float(value) for name, value in metrics.items() if step > self._last.get(name, -1)}
            if new:
                self._points.append({"step": step, "time": _now(), "metrics": new})
                self._last |= dict.fromkeys(new, step)
                self._changed = True

    def report(self, metrics: Metrics, step: int, withstood: Mapping[str, str] = MappingProxyType({})) -> None:
        """Keep what was measured after the epoch, which ends its log; the next epoch begins.

        Args:
            metrics: what was measured, `split/name`.
            step: number of steps done, over all epochs.
            withstood: which examples of each split withstood, as `trainer.epoch_report` has it.
        """
        self.flush()  # readers take a report for the end of the epoch's points
        earlier = None
        with contextlib.suppress(OSError):
            earlier = read_report(self.folder, self.epoch)
        if earlier is None or earlier["digest"] != self.digest:
            content = {"epoch": self.epoch, "step": step, "time": _now(), "digest": self.digest, "metrics": metrics}
            self.keep(_report(self.epoch), json.dumps(content | {"withstood": dict(withstood)}).encode())
        with self._lock:
            self._begin(self.epoch + 1)

    def flush(self) -> None:
        """Write what was taken; what cannot be written now is tried again with the next."""
        with self._writing:
            with self._lock:
                if self._changed:
                    self._waiting[points_file(self.epoch)] = b"".join(
                        json.dumps(p).encode() + b"\n" for p in self._points
                    )
                    self._changed = False
                waiting = list(self._waiting.items())
            for name, content in waiting:
                try:
                    with whole_file(f"{self.folder}/{name}") as stream:
                        stream.write(content)
                except (UsageError, OSError) as error:
                    log.warning("%s; %d files of metrics are queued in memory and written later", error, len(waiting))
                    return
                with self._lock:
                    if self._waiting.get(name) is content:
                        del self._waiting[name]

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Within the block, points are written every few seconds, from a thread; all of them at its end."""
        ended = threading.Event()

        def write() -> None:
            while not ended.wait(EVERY):
                self.flush()

        thread = threading.Thread(target=write, name="trial log", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self.flush()


def read_points(folder: str, epoch: int) -> list[Point]:
    """Points of an epoch that have been written so far, oldest first."""
    try:
        with open_file(f"{folder}/{points_file(epoch)}") as stream:
            return [json.loads(line) for line in stream.read().splitlines()]
    except (FileNotFoundError, *SPOILED):
        return []


def read_report(folder: str, epoch: int) -> dict[str, Any] | None:
    """What was measured after an epoch, None before its end.

    `epoch`, `step`, `time`, `digest`, `metrics` and, after the last epoch, `withstood`.
    """
    return read_file(folder, _report(epoch))


def read_file(folder: str, name: str) -> dict[str, Any] | None:
    """A JSON file of a trial; one that a disk or a hand has spoiled counts as none, and the next attempt writes it."""
    try:
        return read_json(f"{folder}/{name}")
    except SPOILED:
        return None


def failure_of(folder: str) -> str | None:
    """Why a trial failed, if the error is non-retryable."""
    failure = read_file(folder, FAILURE)
    return failure["reason"] if failure else None


def points_file(epoch: int) -> str:
    """Name of the file with the points of an epoch, in the folder of the trial."""
    return f"points/epoch_{epoch:04d}.jsonl"


def _report(epoch: int) -> str:
    return f"reports/epoch_{epoch:04d}.json"


def _now() -> int:
    return int(time.time() * 1000)
