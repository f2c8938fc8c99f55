"""The record of a sweep while it is driven: its event log, and the thread that brings it to MLflow.

Nothing that trains waits for MLflow. What is left when a sweep ends, `python -m sweeps.tracking flush` sends.
"""

import logging
import threading
from collections.abc import Callable
from typing import Any

from sweeps.events import Event, ResultWritten, StartMeasured, SweepEnded, SweepStarted, open_log
from sweeps.settings import Sweep
from sweeps.tracking.cursor import SWEEP, Cursors
from sweeps.tracking.server import reason
from sweeps.tracking.upload import Uploader

log = logging.getLogger(__name__)

SHORTEST, LONGEST = 1.0, 10.0  # seconds between two looks at the log; the longest while the server is away


class Recording:
    """Writes the event log; within a `with` block, a thread sends what is new to MLflow."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep, self.log = sweep, open_log(sweep)
        self._background: Background | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Tune keeps callbacks in its snapshots; only one process sends."""
        return self.__dict__ | {"_background": None}

    def append(self, event: Event) -> None:
        """Add to the log."""
        self.log.append(event)

    def uploader(self) -> Uploader:
        """A sender for the calling thread."""
        return Uploader(self.sweep.folder, self.sweep.local_folder, self.log, self.sweep.mlflow)

    def page(self) -> str:
        """Address of the runs in the UI, which otherwise opens on its pages for language models."""
        uri = self.sweep.mlflow
        server = uri.rstrip("/") if uri.startswith("http") else "http://127.0.0.1:5000"
        experiment = Cursors(self.sweep.local_folder / "mlflow").read(SWEEP).experiment
        runs = f"/{experiment}/runs?workflowType=machine_learning" if experiment else ""
        return f"{server}/#/experiments{runs}"

    def start_measured(self, metrics: dict[str, float], warnings: list[str], description: str) -> None:
        """Record, once, what the sweep starts from."""
        if not any(isinstance(event, StartMeasured) for event in self.log):  # else a sweep that goes on
            self.append(StartMeasured(metrics=metrics, warnings=tuple(warnings), description=description))

    def result_written(self, metrics: dict[str, float], description: str, files: tuple[str, ...]) -> None:
        """Record the result; its step is that of the result before it if the figures are the same."""
        earlier = [event for event in self.log if isinstance(event, ResultWritten)]
        step = 1 if not earlier else earlier[-1].step + (metrics != earlier[-1].metrics)
        self.append(ResultWritten(metrics=metrics, description=description, files=files, step=step))

    def drain(self) -> str:
        """Send everything, now; why that was not possible, else empty."""
        try:
            return "" if self.uploader().send(patience=60) else "another process is sending"
        except Exception as error:
            return reason(error)

    def queued(self) -> str:
        """What MLflow does not have and how to send it, in words; empty if it has everything."""
        points, events = self.uploader().queued()
        if not events:
            return ""
        return (
            f"MLflow at {self.sweep.mlflow} lacks {points} values and {events} events of this sweep; all are "
            f"kept in {self.sweep.folder}. Once it answers, upload them:  "
            f"{self.sweep.command('flush')}"
        )

    def open(self) -> None:
        """Send in the background from now on."""
        self._background = Background(self.uploader())
        self._background.start()

    def close(self) -> None:
        """Send no more in the background; a last attempt to send what is left."""
        if self._background is not None:
            self._background.stop()
            self._background = None
        self.log.back_up()
        self.drain()

    def __enter__(self) -> "Recording":
        self.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """The sweep ends, with its result or without."""
        status = "FINISHED" if kind is None else "FAILED" if issubclass(kind, Exception) else "KILLED"
        self.append(SweepEnded(status=status))
        self.close()
        if kind is not None and (queued := self.queued()):  # else said with the result
            log.warning(queued)


class Background(threading.Thread):
    """Sends one sweep in the background, as soon as the server lets it."""

    def __init__(self, uploader: Uploader, say: Callable[[str], None] = log.warning) -> None:
        super().__init__(name="MLflow uploader", daemon=True)
        self.uploader, self.say, self.ended = uploader, say, threading.Event()

    def run(self) -> None:
        pause, away = SHORTEST, False
        while not self.ended.wait(pause):
            known = set(self.uploader.refused)
            try:
                self.uploader.send(look=False)
            except Exception as error:  # of any kind: nothing that is wrong with MLflow may end a sweep
                if not away:
                    self.say(f"MLflow does not answer; training continues, metrics are queued: {reason(error)}")
                pause, away = min(2 * pause, LONGEST), True
            else:
                if away:
                    self.say("MLflow answers again")
                pause, away = SHORTEST, False
            for name in set(self.uploader.refused) - known:
                self.say(f"MLflow rejects part of {name}: {self.uploader.refused[name]}")

    def stop(self) -> None:
        """End after what is being sent now."""
        self.ended.set()
        self.join(timeout=90)


def start_sweep(sweep: Sweep, params: dict[str, Any], **origin: Any) -> Recording:
    """Record that the sweep begins, or goes on.

    Args:
        params: what all its trials share.
        origin: `tags`, `dataset` and `files` of `SweepStarted`.
    """
    recording = Recording(sweep)
    recording.append(SweepStarted(name=sweep.name, params={key: str(value) for key, value in params.items()}, **origin))
    return recording
