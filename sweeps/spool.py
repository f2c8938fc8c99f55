"""What the runs of a sweep have to say to MLflow, kept in files until it has heard it. Knows no MLflow.

Whoever trains only appends to a file here, so a server that is away, slow or dead costs no step. Each run has a file
KEY.jsonl that only grows: how the run began, the points of its steps, how it ended. KEY.sent beside it says up to which
byte MLflow has taken it; `sweeps.tracking` moves that on. The folder lies on the machine that drives the sweep; from
other nodes `sweeps.desk` brings what trials have to say.
"""

import base64
import contextlib
import dataclasses
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

SWEEP = "sweep"  # key of the parent run

Line = dict[str, Any]
Files = dict[str, str | bytes]  # content by name


@dataclass(frozen=True)
class Sent:
    """How much of a run MLflow has.

    Args:
        run: its id there, empty before it was created.
        experiment: that of the run.
        offset: bytes of the file that were taken.
        known: last step of each metric that an earlier spool of the same run had sent.
        left: bytes at which lines begin that MLflow would not take, though it was there; they are tried again.
    """

    run: str = ""
    experiment: str = ""
    offset: int = 0
    known: dict[str, int] = field(default_factory=dict)
    left: list[int] = field(default_factory=list)


@dataclass
class Spool:
    """The file of one run; as a trial's recorder it travels to the worker, and any number of processes may append.

    Args:
        folder: of all runs of the sweep.
        key: the trial's id, or `SWEEP`.
    """

    folder: Path
    key: str
    _buffer: list[Line] = field(default_factory=list, repr=False)
    _read: int = 0  # bytes of the file whose lines are noted below
    _steps: dict[str, int] = field(default_factory=dict, repr=False)
    _state: Line = field(default_factory=dict, repr=False)

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / f"{self.key}.jsonl"

    def begin(self, name: str, tags: dict[str, str], params: dict[str, Any], **more: str) -> None:
        """The run begins or, after a restart, goes on."""
        text = {key: str(value) for key, value in params.items()}
        self.append([{"begin": name, "time": _now(), "tags": tags, "params": text, **more}])

    def configured(self, params: dict[str, Any]) -> None:
        """Add parameters to the run: those a worker found itself training with."""
        self._buffer.append({"params": {key: str(value) for key, value in params.items()}})

    def record(self, metrics: dict[str, float], step: int) -> None:
        """Take the metrics of one step; from any thread."""
        values = {name: float(value) for name, value in metrics.items()}
        self._buffer.append({"step": step, "time": _now(), "metrics": values})

    def flush(self) -> None:
        """Bring what was taken to where a kill cannot reach it.

        A trial does this before each checkpoint, so what is lost in memory is done again, and what is done again is
        already here: a step not above the last one of its metric is left out.
        """
        lines = self._buffer[:]  # other threads may go on recording
        try:
            self.append(lines)
        except OSError as error:
            print(f"{self.path} cannot be written, keeping {len(lines)} lines in memory: {error}")
        else:
            del self._buffer[: len(lines)]

    def attach(self, files: Files) -> None:
        """Take files for the run's artifacts, by name."""
        if not files:
            return
        raw = {name: content.encode() if isinstance(content, str) else content for name, content in files.items()}
        self._buffer.append({"files": {name: base64.b64encode(content).decode() for name, content in raw.items()}})

    def tag(self, tags: dict[str, str]) -> None:
        """Take tags of the run."""
        self._buffer.append({"tag": tags})

    def dataset(self, dataset: dict[str, str]) -> None:
        """Take what the run reads: name, digest, source_type, source, profile."""
        self._buffer.append({"dataset": dataset})

    def model(self, folder: Path, trial_id: str, name: str) -> None:
        """Take a model of a trial in MLflow's format, to be registered; it stays in its folder until it is sent."""
        self._buffer.append({"model": str(folder), "trial": trial_id, "name": name})

    def end(self, status: str, tags: dict[str, str]) -> None:
        """The run ends as FINISHED, FAILED or KILLED; one that has ended so stays as it is."""
        self.append([{"end": status, "tags": tags, "time": _now()}])

    def state(self) -> Line:
        """The last line that began or ended the run, empty before the first."""
        self.append([])
        return self._state

    def last(self) -> tuple[dict[str, float], int]:
        """Metrics and step of the last points, of step -1 if there are none."""
        points = [line for line, _ in self.lines() if "metrics" in line]
        return (points[-1]["metrics"], points[-1]["step"]) if points else ({}, -1)

    def lines(self, offset: int = 0) -> Iterator[tuple[Line, int]]:
        """The lines from this byte on, each with the byte after it."""
        if not self.path.exists():
            return
        with self.path.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH)
            stream.seek(offset)
            data = stream.read()
        for raw in data.splitlines(keepends=True):
            if raw.endswith(b"\n"):
                offset += len(raw)
                yield json.loads(raw), offset

    def waiting(self) -> bool:
        """Whether MLflow has not taken all of it."""
        sent = self.sent()
        return self.path.exists() and (self.path.stat().st_size > sent.offset or bool(sent.left))

    def sent(self) -> Sent:
        """How much of it MLflow has taken; a record that a power cut spoilt counts as none."""
        try:
            return Sent(**json.loads(self.path.with_suffix(".sent").read_text()))
        except (OSError, ValueError, TypeError):
            return Sent()

    def mark(self, sent: Sent) -> None:
        """MLflow has taken that much."""
        partial = self.path.with_suffix(".sent.partial")
        partial.write_text(json.dumps(dataclasses.asdict(sent)))
        partial.replace(self.path.with_suffix(".sent"))

    def append(self, lines: list[Line]) -> None:
        """Bring lines to the disk, but for what the file has already."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)  # freed by the system even if this process is killed
            self._catch_up(stream)
            news = b"".join(json.dumps(line).encode() + b"\n" for line in map(self._news, lines) if line)
            if news:
                stream.write(news)
                stream.flush()
                os.fsync(stream.fileno())

    def _catch_up(self, stream: BinaryIO) -> None:
        """Note what this and other processes have appended; cut off the half line of one that was killed."""
        stream.seek(self._read)
        data = stream.read()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            stream.truncate(self._read + whole)
        for line in map(json.loads, data[:whole].splitlines()):
            if "metrics" in line:
                self._steps |= dict.fromkeys(line["metrics"], line["step"])
            elif "begin" in line or "end" in line:
                self._state = line
        self._read += whole

    def _news(self, line: Line) -> Line | None:
        """What of a line the file does not have yet."""
        if "end" in line:
            said = {**self._state, "time": line["time"]} == line
            return None if said else line
        if "metrics" in line:
            new = {name: value for name, value in line["metrics"].items() if line["step"] > self._steps.get(name, -1)}
            return {**line, "metrics": new} if new else None
        return line


def spools(folder: Path) -> list[Spool]:
    """Those of all trials of a sweep."""
    return [Spool(folder, path.stem) for path in sorted(folder.glob("*.jsonl")) if path.stem != SWEEP]


@contextlib.contextmanager
def only_sender(folder: Path, patience: float = 0) -> Iterator[bool]:
    """Send as the only process; says whether no other was still sending after `patience` seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + patience
    with (folder / ".sending").open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    yield False
                    return
                time.sleep(0.1)
            else:
                yield True
                return


def _now() -> int:
    return int(time.time() * 1000)
