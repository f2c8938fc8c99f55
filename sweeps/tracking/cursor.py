"""How much of a sweep MLflow has: a file for the sweep and one for each trial, on the machine that drives the sweep.

They only spare work. Without them everything is sent again, and MLflow, which keeps one of (run, metric, step, time,
value), is the same afterwards.
"""

import contextlib
import dataclasses
import fcntl
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

SWEEP = "sweep"  # the name of its file; trials have their ids


@dataclass(frozen=True)
class Cursor:
    """How much of a run has been sent.

    Args:
        run: id of the run in MLflow, empty before it was created.
        experiment: id of the experiment of the sweep's run.
        offset: bytes of the event log; of the sweep.
        refused: bytes at which events begin that MLflow would not take, though it was there; they are tried again.
        described: whether the parameters have been sent; of a trial.
        epoch: the last one that has been sent whole; of a trial.
        size: bytes of the points of the epoch after it.
        known: last step of each metric.
    """

    run: str = ""
    experiment: str = ""
    offset: int = 0
    refused: tuple[int, ...] = ()
    described: bool = False
    epoch: int = 0
    size: int = 0
    known: dict[str, int] = field(default_factory=dict)


class Cursors:
    """The files.

    Args:
        folder: folder of the cursors of a sweep, for one MLflow.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, key: str) -> Cursor:
        """How much of a run has been sent; a file that a power cut spoiled counts as none."""
        try:
            content = json.loads((self.folder / f"{key}.json").read_text())
            return Cursor(**content | {"refused": tuple(content["refused"])})
        except (OSError, ValueError, TypeError, KeyError):
            return Cursor()

    def write(self, key: str, cursor: Cursor) -> None:
        """That much has been sent."""
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f"{key}.partial"
        partial.write_text(json.dumps(dataclasses.asdict(cursor)))
        partial.replace(self.folder / f"{key}.json")

    def clear(self) -> None:
        """Nothing has been sent."""
        for path in self.folder.glob("*.json"):
            path.unlink()

    @contextlib.contextmanager
    def alone(self, patience: float = 0) -> Iterator[bool]:
        """Send as the only process; says whether no other was still sending after `patience` seconds."""
        self.folder.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + patience
        with (self.folder / ".sending").open("w") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # freed by the system even if this process dies
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        yield False
                        return
                    time.sleep(0.1)
                else:
                    yield True
                    return
