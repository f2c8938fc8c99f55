"""Bring what waits in a sweep's spool to MLflow, each point once.

A point keeps its own time, and MLflow keeps one of (run, metric, step, time, value): a batch whose answer was lost is
sent again and changes nothing.
"""

import base64
import contextlib
import fcntl
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from sweeps.spool import SWEEP, Line, Sent, Spool, only_sender, spools
from sweeps.tracking.model import register

EXPERIMENT = "heatmap-sweeps"
SWEEP_TAG = "heatmap_sweeps.sweep"
TRIAL_TAG = "heatmap_sweeps.trial"
PARENT_TAG = "mlflow.parentRunId"
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
        self.refused: dict[str, str] = {}  # key → why; not tried again
        self._verified = False
        self._taken: dict[str, int] = {}  # key → bytes of a file that MLflow has whole

    def waiting(self) -> list[Spool]:
        """Runs of which MLflow could take more; of what has not grown since it had all, only the size is looked at."""
        found = [Spool(self.folder, SWEEP), *spools(self.folder)]
        return [spool for spool in found if spool.key not in self.refused and self._waits(spool)]

    def _waits(self, spool: Spool) -> bool:
        size = spool.path.stat().st_size if spool.path.exists() else 0
        if self._taken.get(spool.key) == size:
            return False
        waits = spool.waiting()
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
                sweep = Spool(self.folder, SWEEP)
                for spool in self.waiting():
                    try:
                        _send(client, spool, sweep.sent(), self.told)
                    except FileNotFoundError as error:  # a model that was removed before it could be sent
                        self.refused[spool.key] = str(error)
                    except MlflowException as error:
                        if error.error_code not in REFUSALS or not sweep.sent().run:
                            raise
                        self.refused[spool.key] = reason(error)
            return alone

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
                self.say(f"MLflow refuses the points of {key}: {self.delivery.refused[key]}")

    def stop(self) -> None:
        """End after what is being sent now."""
        self.ended.set()
        self.join(timeout=90)


def reason(error: Exception) -> str:
    """The error in one line."""
    text = str(error).partition("\n")[0]
    return (text if isinstance(error, MlflowException) and text else f"{type(error).__name__} {text}".strip())[:200]


def _send(client: MlflowClient, spool: Spool, sweep: Sent, told: Told) -> None:
    sent, name = spool.sent(), spool.key
    for batch, offset in _batches(spool.lines(sent.offset)):
        first, points = batch[0], 0
        if "begin" in first:
            name = first["begin"]
            sent = _begin(client, spool, first, sent, sweep)
        elif "metrics" in first:
            metrics = [
                Metric(key, value, line["time"], line["step"])
                for line in batch
                for key, value in line["metrics"].items()
                if line["step"] > sent.known.get(key, -1)
            ]
            points = len(metrics)
            if metrics:
                client.log_batch(sent.run, metrics=metrics)
        elif "params" in first:
            client.log_batch(sent.run, params=[Param(key, value) for key, value in first["params"].items()])
        elif "files" in first:
            _put(client, sent.run, {name: base64.b64decode(content) for name, content in first["files"].items()})
        elif "dataset" in first:
            tags = [InputTag("mlflow.data.context", "training")]
            client.log_inputs(sent.run, [DatasetInput(Dataset(**first["dataset"]), tags)])
        elif "tag" in first:
            client.log_batch(sent.run, tags=[RunTag(key, value) for key, value in first["tag"].items()])
        elif "model" in first:
            register(client, sent.experiment, sent.run, Path(first["model"]), first["name"])
        elif "end" in first:
            for key, value in first["tags"].items():
                client.set_tag(sent.run, key, value)
            client.set_terminated(sent.run, first["end"], first["time"])
        sent = replace(sent, offset=offset)
        spool.mark(sent)
        told(name, points)


def _put(client: MlflowClient, run: str, files: dict[str, bytes]) -> None:
    """Put files into the run's artifacts, by names that may have folders."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        client.log_artifacts(run, folder)


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


def _begin(client: MlflowClient, spool: Spool, line: Line, sent: Sent, sweep: Sent) -> Sent:
    """Create the run, or find it again and set it running."""
    if not sent.run:
        if spool.key == SWEEP:
            experiment, identity = _experiment(client, line.get("artifacts")), {SWEEP_TAG: line["begin"]}
        else:
            experiment, identity = sweep.experiment, {TRIAL_TAG: spool.key, PARENT_TAG: sweep.run}
        query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in identity.items())
        found = client.search_runs([experiment], query, max_results=1)
        tags = identity | line["tags"]
        run = found[0] if found else client.create_run(experiment, tags=tags, run_name=line["begin"])
        params = [Param(key, value) for key, value in line["params"].items() if key not in run.data.params]
        client.log_batch(run.info.run_id, params=params, tags=[RunTag(key, value) for key, value in tags.items()])
        known = {}
        if spool.key != SWEEP:
            for name in run.data.metrics:
                known[name] = max(point.step for point in client.get_metric_history(run.info.run_id, name))
        sent = Sent(run.info.run_id, experiment, 0, known)
    client.update_run(sent.run, status="RUNNING")
    return sent


def _experiment(client: MlflowClient, artifacts: str | None) -> str:
    with contextlib.suppress(MlflowException):  # another sweep has just made it
        if client.get_experiment_by_name(EXPERIMENT) is None:
            client.create_experiment(EXPERIMENT, artifact_location=artifacts)
    found = client.get_experiment_by_name(EXPERIMENT)
    assert found is not None
    return found.experiment_id


def _has(client: MlflowClient, run: str) -> bool:
    try:
        return client.get_run(run).info.lifecycle_stage == "active"
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
