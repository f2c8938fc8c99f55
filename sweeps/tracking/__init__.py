"""MLflow: one parent run per sweep, one child per trial, found again by tag after any restart.

Nothing that trains waits for MLflow: all that is said here goes to the sweep's spool (`sweeps.spool`), and the driver
sends it on in the background. What is left when a sweep ends, `python -m sweeps.tracking flush` sends.
"""

import os
import shlex
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mlflow import MlflowClient

from sweeps.environment import set_environment
from sweeps.spool import SWEEP, Files, Spool, spools
from sweeps.tracking.delivery import Courier, Delivery, connect, reason
from sweeps.tracking.lines import PARENT_TAG, SWEEP_TAG, TRIAL_TAG
from trainer.config import UsageError

__all__ = ["PARENT_TAG", "SWEEP_TAG", "TRIAL_TAG", "Tracking", "check_tracking", "start_sweep"]


@dataclass
class Tracking:
    """How a sweep is recorded; travels to every process of it.

    Args:
        uri: of MLflow.
        local_dir: folder of the machine that drives the sweep.
        name: of the sweep.
        storage: of the sweep, for the words to the user.
    """

    uri: str
    local_dir: Path
    name: str
    storage: str = ""
    _courier: Courier | None = field(default=None, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        """Only one process sends."""
        return self.__dict__ | {"_courier": None}

    @property
    def folder(self) -> Path:
        """Where all waits until MLflow has it."""
        return self.local_dir / self.name / "spool"

    @property
    def client(self) -> MlflowClient:
        """A client of its own for the calling process."""
        set_environment()
        return MlflowClient(self.uri)

    def page(self) -> str:
        """Address of the runs in the UI, which otherwise opens on its pages for language models."""
        server = self.uri.rstrip("/") if self.uri.startswith("http") else "http://127.0.0.1:5000"
        experiment = Spool(self.folder, SWEEP).sent().experiment
        runs = f"/{experiment}/runs?workflowType=machine_learning" if experiment else ""
        return f"{server}/#/experiments{runs}"

    def end_trial(self, trial_id: str, state: str, tags: dict[str, str]) -> None:
        """End a trial's run with its state (finished, stopped, diverged, failed); one that ended so stays as it is."""
        spool = Spool(self.folder, trial_id)
        if not spool.state():  # its process failed before it could say anything
            spool.begin(trial_id, {}, {})
        status = {"finished": "FINISHED", "failed": "FAILED"}.get(state, "KILLED")
        spool.end(status, tags | {"state": state})

    def run_of(self, trial_id: str) -> str:
        """Id of the trial's run, empty until MLflow has heard of it."""
        return Spool(self.folder, trial_id).sent().run

    def log_origin(self, tags: dict[str, str], dataset: dict[str, str], files: Files) -> None:
        """Put on the parent run where its numbers come from."""
        spool = Spool(self.folder, SWEEP)
        spool.tag(tags)
        spool.dataset(dataset)
        spool.attach(files)
        spool.flush()

    def log_start(self, metrics: dict[str, float], warnings: list[str], description: str) -> None:
        """Put on the parent run, once, what the sweep starts from; the description stands until there is a result."""
        spool = Spool(self.folder, SWEEP)
        if spool.last()[1] >= 0:  # a sweep that goes on
            return
        tags = {"warnings": "\n".join(warnings)} if warnings else {}
        spool.tag(tags | {"mlflow.note.content": description})
        spool.record(metrics, 0)
        spool.flush()

    def log_result(self, metrics: dict[str, float], description: str, files: Files) -> None:
        """Put the result on the parent run; the description, in Markdown, is shown on its page."""
        spool = Spool(self.folder, SWEEP)
        earlier, step = spool.last()
        spool.record(metrics, max(step, 0) if metrics == earlier else step + 1)  # another after failed trials' repeat
        spool.tag({"mlflow.note.content": description})
        spool.attach(files)
        spool.flush()

    def log_model(self, trial_id: str, folder: Path) -> None:
        """Register a saved model of a trial under the sweep's name, as its pick."""
        spool = Spool(self.folder, SWEEP)
        spool.model(folder, trial_id, self.name)
        spool.flush()

    def log_files(self, files: Files) -> None:
        """Put files on the parent run."""
        spool = Spool(self.folder, SWEEP)
        spool.attach(files)
        spool.flush()

    def end(self, status: str) -> None:
        """End the parent run as FINISHED, FAILED or KILLED."""
        Spool(self.folder, SWEEP).end(status, {})

    def open(self) -> None:
        """Send in the background from now on."""
        self._courier = Courier(self.folder, self.uri)
        self._courier.start()

    def close(self) -> None:
        """Send no more in the background; a last attempt to send what is left."""
        if self._courier is not None:
            self._courier.stop()
            self._courier = None
        self.drain()

    def drain(self) -> str:
        """Send what waits, now; why that was not possible, else empty."""
        try:
            return "" if Delivery(self.folder, self.uri).send(patience=60) else "another process is sending"
        except Exception as error:
            return reason(error)

    def unheard(self) -> str:
        """What still waits and how to send it, in words; empty if MLflow has everything."""
        waiting = [spool for spool in (Spool(self.folder, SWEEP), *spools(self.folder)) if spool.waiting()]
        if not waiting:
            return ""
        points = sum(len(line.get("metrics", ())) for s in waiting for line, _ in s.lines(s.sent().offset))
        name = shlex.quote(self.name)
        python = shlex.quote(os.path.relpath(sys.executable) if sys.prefix != sys.base_prefix else "python")
        where = self.storage or str(self.local_dir)
        storage = "" if where == str(Path("runs").resolve()) else f" --storage {shlex.quote(where)}"
        left = sum(len(spool.sent().left) for spool in waiting)
        more = f", and {left} things it would not take," if left else ""
        return (
            f"MLflow at {self.uri} has not heard all: {points} points of {len(waiting)} runs{more} wait in "
            f"{self.folder}. Once it answers:  {python} -m sweeps.tracking flush --name {name}{storage}"
        )

    def __enter__(self) -> "Tracking":
        self.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """End the parent run, and as KILLED every trial's run whose process went without a word."""
        for spool in spools(self.folder):
            if "begin" in spool.state():
                spool.end("KILLED", {})
        self.end("FINISHED" if kind is None else "FAILED" if issubclass(kind, Exception) else "KILLED")
        self.close()
        if kind is not None and self.unheard():  # else said with the result
            print(self.unheard())


def check_tracking(uri: str) -> None:
    """Ask the server, or the database, for a sign of life; a server that is away for now is only told of.

    Raises:
        UsageError: if the address cannot be right: no such scheme or host, or something that is not MLflow answers.
    """
    try:
        connect(uri)
    except Exception as error:
        if not _is_away(uri, error):
            raise UsageError(
                f"--tracking-uri {uri}: no MLflow answers there; give http://HOST:PORT of a server or "
                f"sqlite:///PATH ({reason(error)[:120]})"
            ) from None
        print(f"No MLflow answers at {uri} yet. The sweep goes on, and what it has to say waits in its spool.")


def _is_away(uri: str, error: Exception) -> bool:
    """Whether nobody is at home behind an address that may well be right."""
    address = urlsplit(uri)
    if address.scheme not in ("http", "https") or not address.hostname:
        return False
    try:
        port = address.port or {"http": 80, "https": 443}[address.scheme]
        with socket.create_connection((address.hostname, port), timeout=5):
            pass
    except (ValueError, socket.gaierror):
        return False
    except OSError:
        return True
    # Something listens: silence, and what a proxy says for a dead server, have these codes; another service has not.
    return getattr(error, "error_code", "") in ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE")


def start_sweep(uri: str, name: str, params: dict[str, Any], local_dir: Path, storage: str = "") -> Tracking:
    """Begin the sweep's parent run, or go on with it.

    The database, the experiment and the parent are made by the one process that sends: processes that create a fresh
    database together break each other.
    """
    tracking = Tracking(uri, local_dir.resolve(), name, storage)
    artifacts = (local_dir / "mlartifacts").resolve().as_uri() if uri.startswith("sqlite") else None
    Spool(tracking.folder, SWEEP).begin(
        name, {SWEEP_TAG: name}, params, **({"artifacts": artifacts} if artifacts else {})
    )
    return tracking
