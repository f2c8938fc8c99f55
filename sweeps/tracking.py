"""MLflow: one parent run per sweep, one child per trial, found again by tag after any restart."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from trainer.config import UsageError

os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # the default of 7 blocks for four minutes

SWEEP_TAG = "heatmap_sweeps.sweep"
TRIAL_TAG = "heatmap_sweeps.trial"
PARENT_TAG = "mlflow.parentRunId"
BATCH = 1000  # most metrics the server takes at once


@dataclass(frozen=True)
class Tracking:
    """Where a sweep is recorded; plain strings, so it travels to every process."""

    uri: str
    experiment_id: str
    parent: str

    @property
    def client(self) -> MlflowClient:
        """A client of its own for the calling process."""
        return MlflowClient(self.uri)

    def page(self) -> str:
        """Address of the runs in the UI, which otherwise opens on its pages for language models."""
        server = self.uri.rstrip("/") if self.uri.startswith("http") else "http://127.0.0.1:5000"
        return f"{server}/#/experiments/{self.experiment_id}/runs?workflowType=machine_learning"

    def trial_run(self, trial_id: str, name: str, params: dict[str, Any], tags: dict[str, str] | None = None) -> str:
        """Id of the trial's run, the one of an earlier start if there was one."""
        all_tags = {TRIAL_TAG: trial_id, PARENT_TAG: self.parent, **(tags or {})}
        return _find_or_create(
            self.client, self.experiment_id, {TRIAL_TAG: trial_id, PARENT_TAG: self.parent}, all_tags, name, params
        )

    def tag(self, run: str, tags: dict[str, str]) -> None:
        """Set tags of a run."""
        for name, value in tags.items():
            self.client.set_tag(run, name, value)

    def end(self, run: str, status: str) -> None:
        """End a run as FINISHED, FAILED or KILLED."""
        self.client.set_terminated(run, status)

    def end_trial(self, run: str, state: str, checkpoint: str) -> None:
        """End a trial's run with its state (finished, stopped, diverged, failed); one that ended so stays as it is."""
        known = self.client.get_run(run)
        if known.info.status == "RUNNING" or known.data.tags.get("state") != state:
            self.tag(run, {"checkpoint": checkpoint})
            self.end(run, {"finished": "FINISHED", "failed": "FAILED"}.get(state, "KILLED"))
            self.tag(run, {"state": state})  # last: it says that all the rest was said

    def __enter__(self) -> "Tracking":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """End the parent run, and as KILLED every trial's run whose process went without a word."""
        with tolerate_absence("how the sweep ended"):
            query = f"tags.`{PARENT_TAG}` = '{self.parent}' and attributes.status = 'RUNNING'"
            for run in self.client.search_runs([self.experiment_id], query, max_results=BATCH):
                self.end(run.info.run_id, "KILLED")
            self.end(self.parent, "FINISHED" if kind is None else "FAILED" if issubclass(kind, Exception) else "KILLED")

    def log_calibration(self, units: dict[str, float]) -> None:
        """Put the calibrated unit of each weight on the parent run."""
        with tolerate_absence("the calibrated units"):
            self.client.log_dict(self.parent, units, "calibration.json")

    def log_result(self, metrics: dict[str, float], result: dict[str, Any], table: str) -> None:
        """Put the ranking on the parent run."""
        with tolerate_absence("the ranking"):
            self.client.log_batch(self.parent, metrics=_points(metrics, 0))
            self.client.log_dict(self.parent, result, "result.json")
            self.client.log_text(self.parent, table, "ranking.txt")


@contextlib.contextmanager
def tolerate_absence(what: str, say: Callable[[str], None] = print) -> Iterator[None]:
    """A server that is away must not end a sweep; `say` is told what it did not hear."""
    try:
        yield
    except Exception as error:
        say(f"MLflow was not told {what}: {error}")


def check_tracking(uri: str) -> None:
    """Ask the server, or the database, for a sign of life.

    Raises:
        UsageError: if there is none.
    """
    try:
        MlflowClient(uri).search_experiments(max_results=1)
    except Exception as error:
        reason = str(error).partition("\n")[0] if isinstance(error, MlflowException) else type(error).__name__
        raise UsageError(
            f"--tracking-uri {uri}: no MLflow answers there; give http://HOST:PORT of a running server or "
            f"sqlite:///PATH ({reason[:120]})"
        ) from None


def start_sweep(uri: str, name: str, params: dict[str, Any], artifacts: Path) -> Tracking:
    """Create the database, the experiment and the parent run, or find them.

    Done once by the driver: processes that create a fresh database together break each other.
    """
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("heatmap-sweeps")
    if experiment is None:
        location = artifacts.resolve().as_uri() if uri.startswith("sqlite") else None
        experiment_id = client.create_experiment("heatmap-sweeps", artifact_location=location)
    else:
        experiment_id = experiment.experiment_id
    parent = _find_or_create(client, experiment_id, {SWEEP_TAG: name}, {SWEEP_TAG: name}, name, params)
    return Tracking(uri, experiment_id, parent)


@dataclass
class RunRecorder:
    """Points of one run, buffered and sent in batches; a server that is away costs no point and no step."""

    uri: str
    run: str
    buffer: list[Metric] = field(default_factory=list)

    def record(self, metrics: dict[str, float], step: int) -> None:
        """Take the metrics of one step."""
        self.buffer += _points(metrics, step)

    def flush(self) -> None:
        """Send what was taken; what cannot be sent stays for the next time."""
        client = MlflowClient(self.uri)
        while self.buffer:
            try:
                client.log_batch(self.run, metrics=self.buffer[:BATCH])
            except Exception as error:
                print(f"MLflow at {self.uri} did not take {len(self.buffer)} points, keeping them: {error}")
                return
            del self.buffer[:BATCH]


def _points(metrics: dict[str, float], step: int) -> list[Metric]:
    now = int(time.time() * 1000)
    return [Metric(name, float(value), now, step) for name, value in metrics.items()]


def _find_or_create(
    client: MlflowClient,
    experiment_id: str,
    identity: dict[str, str],
    tags: dict[str, str],
    name: str,
    params: dict[str, Any],
) -> str:
    query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in identity.items())
    found = client.search_runs([experiment_id], query, max_results=1)
    if found:
        client.update_run(found[0].info.run_id, status="RUNNING")
        return found[0].info.run_id
    run = client.create_run(experiment_id, tags=tags, run_name=name).info.run_id
    client.log_batch(
        run,
        params=[Param(key, str(value)) for key, value in params.items()],
        tags=[RunTag(key, value) for key, value in tags.items()],
    )
    return run
