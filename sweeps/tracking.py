"""MLflow: one parent run per sweep, one child per trial, found again by tag after any restart."""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

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

    def log_result(self, metrics: dict[str, float], result: dict[str, Any], table: str) -> None:
        """Put the ranking on the parent run."""
        recorder = RunRecorder(self.uri, self.parent)
        recorder.record(metrics, 0)
        recorder.flush()
        self.client.log_dict(self.parent, result, "result.json")
        self.client.log_text(self.parent, table, "ranking.txt")


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
        now = int(time.time() * 1000)
        self.buffer += [Metric(name, float(value), now, step) for name, value in metrics.items()]

    def flush(self) -> None:
        """Send what was taken; what cannot be sent stays for the next time."""
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # the default of 7 blocks for four minutes
        client = MlflowClient(self.uri)
        while self.buffer:
            try:
                client.log_batch(self.run, metrics=self.buffer[:BATCH])
            except Exception as error:
                print(f"MLflow at {self.uri} did not take {len(self.buffer)} points, keeping them: {error}")
                return
            del self.buffer[:BATCH]


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
