"""Bring what waits in a sweep's spool to MLflow, each point once.

A point keeps its own time, and MLflow keeps one of (run, metric, step, time, value): a batch whose answer was lost is
sent again and changes nothing.
"""

import contextlib
import fcntl
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from sweeps.environment import set_environment
from sweeps.spool import SWEEP, Line, Sent, Spool, only_sender, spools
from sweeps.tracking.lines import OPTIONAL, begin, tell

BATCH = 1000  # most metrics the server takes at once
# Sending again would not help. The last: a server too old for what is asked.
REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE", "ENDPOINT_NOT_FOUND")
SHORTEST, LONGEST = 1.0, 10.0  # seconds between two looks at the spool; the longest while the server is away

Told = Callable[[str, int], None]


class Delivery:
    """Sends the spool of one sweep.

    Args:
        folder: of the spool.
        uri: of MLflow.
        told: called with a run's name and a number of points whenever MLflow has taken some.
    """

    def __init__(self, folder: Path, uri: str, told: Told = lambda name, points: None) -> None:
        self.folder, self.uri, self.told = folder, uri, told
        self.refused: dict[str, str] = {}  # key → why
        self._blocked: set[str] = set()  # keys: not tried again
        self._retried: set[tuple[str, int]] = set()  # keys and where a line begins
        self._verified = False
        self._taken: dict[str, int] = {}  # key → bytes of a file that MLflow has whole

    def waiting(self) -> list[Spool]:
        """Runs of which MLflow could take more; of what has not grown since it had all, only the size is looked at."""
        found = [Spool(self.folder, SWEEP), *spools(self.folder)]
        return [spool for spool in found if spool.key not in self._blocked and self._waits(spool)]

    def _waits(self, spool: Spool) -> bool:
        size = spool.path.stat().st_size if spool.path.exists() else 0
        if self._taken.get(spool.key) == size:
            return False
        sent = spool.sent()
        waits = size > sent.offset or any((spool.key, start) not in self._retried for start in sent.left)
        if not waits:
            self._taken[spool.key] = size
        return waits

    def send(self, patience: float = 0) -> bool:
        """Send all that waits; says whether it could, False if another process is sending.

        Raises:
            Exception: whatever MLflow's client raises for a server that is away.
        """
        with only_sender(self.folder, patience) as alone:
            if alone and self.waiting():
                client = connect(self.uri)
                if not self._verified:
                    self._verify(client)
                waiting = self.waiting()
                for spool in waiting:
                    self._send(client, spool)
                for spool in waiting:  # last: a model needs the run of its trial
                    self._send_left(client, spool)
            return alone

    def _send(self, client: MlflowClient, spool: Spool) -> None:
        sweep, sent, name = Spool(self.folder, SWEEP), spool.sent(), spool.key
        start = sent.offset
        for batch, end in _batches(spool.lines(start)):
            points = 0
            try:
                if "begin" in batch[0]:
                    name = batch[0]["begin"]
                    sent = begin(client, spool, batch[0], sent, sweep.sent())
                else:
                    points = tell(client, spool, sent, batch)
            except Exception as error:
                if OPTIONAL & batch[0].keys() and _answers(client):
                    self.refused[spool.key] = reason(error)
                    sent = replace(sent, left=[*sent.left, start])
                elif getattr(error, "error_code", "") in REFUSALS and sweep.sent().run:
                    self.refused[spool.key] = reason(error)
                    self._blocked.add(spool.key)
                    return
                else:
                    raise
            start, sent = end, replace(sent, offset=end)
            spool.mark(sent)
            self.told(name, points)

    def _send_left(self, client: MlflowClient, spool: Spool) -> None:
        """Try once more what MLflow would not take; one that refuses it again is left alone by this process."""
        sent = spool.sent()
        for start in [start for start in sent.left if (spool.key, start) not in self._retried]:
            self._retried.add((spool.key, start))
            try:
                tell(client, spool, sent, [next(spool.lines(start))[0]])
            except Exception as error:
                if not _answers(client):
                    raise
                self.refused[spool.key] = reason(error)
            else:
                sent = replace(sent, left=[other for other in sent.left if other != start])
                spool.mark(sent)
                if not sent.left:
                    self.refused.pop(spool.key, None)

    def _verify(self, client: MlflowClient) -> None:
        """Begin anew if what was sent is not there: another server, or one that lost its runs."""
        sent = Spool(self.folder, SWEEP).sent()
        if sent.run and not _has(client, sent.run):
            for spool in (Spool(self.folder, SWEEP), *spools(self.folder)):
                spool.mark(Sent())
            self._taken.clear()
        self._verified = True


def connect(uri: str) -> MlflowClient:
    """A client of a server that answers, or of a database that is whole.

    Raises:
        Exception: whatever MLflow's client raises.
    """
    set_environment()
    with contextlib.ExitStack() as held:
        if uri.startswith("sqlite:///"):  # processes that make the same database together break each other
            path = Path(uri.removeprefix("sqlite:///") + ".lock")
            path.parent.mkdir(parents=True, exist_ok=True)
            fcntl.flock(held.enter_context(path.open("w")), fcntl.LOCK_EX)
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    return client


class Courier(threading.Thread):
    """Sends the spool of one sweep in the background, as soon as the server lets it."""

    def __init__(self, folder: Path, uri: str, say: Callable[[str], None] = print) -> None:
        super().__init__(name="courier", daemon=True)
        self.delivery, self.say, self.ended = Delivery(folder, uri), say, threading.Event()

    def run(self) -> None:
        pause, away = SHORTEST, False
        while not self.ended.wait(pause):
            known = set(self.delivery.refused)
            try:
                if self.delivery.waiting():
                    self.delivery.send()
            except Exception as error:  # of any kind: nothing that is wrong with MLflow may end a sweep
                if not away:
                    self.say(f"MLflow is away, training goes on and its points wait: {reason(error)}")
                pause, away = min(2 * pause, LONGEST), True
            else:
                if away:
                    self.say("MLflow is back")
                pause, away = SHORTEST, False
            for key in set(self.delivery.refused) - known:
                self.say(f"MLflow refuses something of {key}: {self.delivery.refused[key]}")

    def stop(self) -> None:
        """End after what is being sent now."""
        self.ended.set()
        self.join(timeout=90)


def reason(error: Exception) -> str:
    """The error in one line."""
    text = str(error).partition("\n")[0]
    return (text if isinstance(error, MlflowException) and text else f"{type(error).__name__} {text}".strip())[:200]


def _batches(lines: Iterator[tuple[Line, int]]) -> Iterator[tuple[list[Line], int]]:
    """Points of several steps together, every other line alone; each with the byte after it."""
    batch: list[Line] = []
    size = end = 0
    for line, offset in lines:
        count = len(line["metrics"]) if "metrics" in line else BATCH
        if batch and size + count > BATCH:
            yield batch, end
            batch, size = [], 0
        batch.append(line)
        size, end = size + count, offset
    if batch:
        yield batch, end


def _answers(client: MlflowClient) -> bool:
    try:
        client.search_experiments(max_results=1)
    except Exception:
        return False
    return True


def _has(client: MlflowClient, run: str) -> bool:
    try:
        return client.get_run(run).info.lifecycle_stage == "active"
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
