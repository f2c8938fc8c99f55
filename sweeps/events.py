"""The event log of a sweep: one file that only grows, written by the process that drives the sweep.

What a trial measures is in the trial's own folder (`trainer.trial_log`); what happens to the sweep is here. MLflow, the
terminal, status, early stopping, ranking and report are readers of the two and keep nothing of their own that could
not be derived again.
"""

import dataclasses
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from sweeps.settings import Sweep
from trainer.locations import file_size, is_url, open_file, whole_file

FILE = "events.jsonl"


def now() -> int:
    """Milliseconds since 1970."""
    return int(time.time() * 1000)


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened.

    Args:
        time: time of the event, in ms since 1970.
    """

    time: int = field(default_factory=now)


@dataclass(frozen=True, kw_only=True)
class SweepStarted(Event):
    """The sweep began, or went on after an interruption.

    Args:
        params: what all trials share.
        tags: who ran what.
        dataset: the shards: name, digest, source_type, source, profile; empty where they are not read.
        files: paths below the sweep's folder that say where its numbers come from.
    """

    name: str
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    dataset: dict[str, str] = field(default_factory=dict)
    files: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class StartMeasured(Event):
    """The start checkpoint was measured.

    Args:
        metrics: metrics of the start checkpoint.
        warnings: what may keep the sweep from an answer.
        description: the same in Markdown.
    """

    metrics: dict[str, float]
    warnings: tuple[str, ...]
    description: str


@dataclass(frozen=True, kw_only=True)
class TrialStarted(Event):
    """A trial began, or began again.

    Args:
        trial_id: Tune's id.
        name: name for people, such as `ssim w=0.13 #07`: regularizer, weight and `tag`.
        part: folder of the run of Tune that it belongs to; empty of the pick trained further.
        weight: the absolute one.
        strength: the same in calibrated units.
        penalty_settings: settings of the regularizer, those that are not the defaults.
        digest: digest of the configuration that was asked for.
        number: number of the trial in the study, or of the trial that it repeats or trains further.
        repeats: which repetition of the best weight of a regularizer it is, from 1; 0 of a trial of the search.
        resumed_from: id of the trial that it trains further; empty of others.
        start: checkpoint that it begins with; empty for the sweep's.
    """

    trial_id: str
    name: str
    part: str
    regularizer: str
    weight: float
    strength: float
    seed: int
    epochs: int
    digest: str
    workers: int = 1
    number: int | None = None
    repeats: int = 0
    resumed_from: str = ""
    start: str = ""
    penalty_settings: dict[str, float] = field(default_factory=dict)

    @property
    def tag(self) -> str:
        """Such as `#07`, `#07 again 2` or `#07 resumed`."""
        again = f" again {self.repeats}" if self.repeats else ""
        return f"{tag(self.number, self.trial_id)}{again}{' resumed' if self.resumed_from else ''}"


@dataclass(frozen=True, kw_only=True)
class EpochReported(Event):
    """A trial reported an epoch.

    Args:
        metrics: the small part that went through Tune (`trainer.epoch_report.REPORTED`).
    """

    trial_id: str
    metrics: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class TrialEnded(Event):
    """A trial is over; the state that it ended in is derived from this (`sweeps.trials.state_of`).

    Args:
        error: why it failed, empty where it did not.
        epoch: the last that it reported, 0 if none.
        diverged: whether its loss was no longer finite.
        digest: digest of what its worker trained.
        checkpoint: folder of its last checkpoint, empty if there is none.
        metrics: everything measured after its last epoch.
    """

    trial_id: str
    error: str = ""
    epoch: int = 0
    diverged: bool = False
    digest: str = ""
    checkpoint: str = ""
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PartEnded(Event):
    """All trials of one run of Tune have ended.

    Args:
        trials: ids of those that count. Tune may have forgotten others when it was killed, and tried them again.
    """

    part: str
    trials: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ResultWritten(Event):
    """The result is in the sweep's folder.

    Args:
        metrics: metrics of the pick.
        description: the result in Markdown.
        files: paths below the sweep's folder.
        step: counts the results that differ, from 1.
    """

    metrics: dict[str, float]
    description: str
    files: tuple[str, ...]
    step: int


@dataclass(frozen=True, kw_only=True)
class FilesWritten(Event):
    """Report and figures are in the sweep's folder.

    Args:
        files: paths below it.
    """

    files: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ModelSaved(Event):
    """The pick was saved as a model of MLflow.

    Args:
        folder: folder of the model, on the machine that drove the sweep.
    """

    trial_id: str
    folder: str


@dataclass(frozen=True, kw_only=True)
class SweepEnded(Event):
    """The process that drives the sweep ended it.

    Args:
        status: FINISHED, FAILED or KILLED (interrupted), as MLflow has them.
    """

    status: str


def tag(number: int | None, trial_id: str) -> str:
    """A trial for people: its number, such as #07; its id where it has none."""
    return trial_id if number is None else f"#{number:02d}"


KINDS: dict[str, type[Event]] = {kind.__name__: kind for kind in Event.__subclasses__()}


class EventLog:
    """The file, for its one writer and any number of readers.

    Args:
        path: path of the log on the machine that drives the sweep.
        copy: URL that it is copied to with each snapshot of Tune, if the storage is an object store; else empty.
    """

    def __init__(self, path: Path, copy: str = "") -> None:
        self.path, self.copy = path, copy
        self._copied = 0  # bytes

    def append(self, event: Event) -> None:
        """Bring an event to the disk; the half line of a writer that was killed is cut off."""
        line = json.dumps({"event": type(event).__name__} | dataclasses.asdict(event)).encode() + b"\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as stream:
            cut_half_line(stream)
            stream.write(line)
            stream.flush()
            os.fsync(stream.fileno())

    def read(self, offset: int = 0) -> Iterator[tuple[Event, int]]:
        """Events from this byte on, each with the byte after it."""
        if not self.path.exists():
            return
        with self.path.open("rb") as stream:
            stream.seek(offset)
            for line in stream:
                if not line.endswith(b"\n"):
                    return
                offset += len(line)
                yield _event(json.loads(line)), offset

    def __iter__(self) -> Iterator[Event]:
        return (event for event, _ in self.read())

    def size(self) -> int:
        """Bytes of the file."""
        return self.path.stat().st_size if self.path.exists() else 0

    def back_up(self) -> None:
        """Copy the file to the object store, if it has grown."""
        size = self.size()
        if self.copy and size > self._copied:
            with whole_file(self.copy) as stream:
                stream.write(self.path.read_bytes())
            self._copied = size


def cut_half_line(stream: BinaryIO) -> None:
    """Cut off what stands behind the last end of a line: its writer was killed, or the disk was full."""
    end = stream.seek(0, os.SEEK_END)
    if end and (stream.seek(end - 1), stream.read(1))[1] != b"\n":
        stream.seek(0)
        stream.truncate(stream.read().rfind(b"\n") + 1)


def _event(content: dict[str, Any]) -> Event:
    kind: Any = KINDS[content.pop("event")]
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in content.items()})


def open_log(sweep: Sweep) -> EventLog:
    """The log of a sweep; on another machine than the one that drives it, its copy in the object store."""
    return log_in(sweep.folder, sweep.local_folder)


def log_in(folder: str, local: Path) -> EventLog:
    """The log of the sweep in this folder, driven from a machine with this local one."""
    path, copy = local / FILE, f"{folder}/{FILE}" if is_url(folder) else ""
    recover(path, copy)
    return EventLog(path, copy)


def recover(path: Path, copy: str) -> None:
    """Fetch a file that only grows from its copy in the object store, where that is longer than what is here.

    On the machine that writes it, it never is.
    """
    if not copy or (file_size(copy) or 0) <= (path.stat().st_size if path.exists() else 0):
        return
    with open_file(copy) as source, whole_file(str(path)) as target:
        target.write(source.read())
