"""What the lines of a spool say to MLflow."""

import base64
import contextlib
import tempfile
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from sweeps.spool import SWEEP, Line, Sent, Spool
from sweeps.tracking.model import register

EXPERIMENT = "heatmap-sweeps"
SWEEP_TAG = "heatmap_sweeps.sweep"
TRIAL_TAG = "heatmap_sweeps.trial"
PARENT_TAG = "mlflow.parentRunId"
OPTIONAL = {"files", "dataset", "model"}  # what else a run has to say does not wait for them


def begin(client: MlflowClient, spool: Spool, line: Line, sent: Sent, sweep: Sent) -> Sent:
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


def tell(client: MlflowClient, spool: Spool, sent: Sent, batch: list[Line]) -> int:
    """Say the points of several steps, or another line; returns the number of points.

    Raises:
        Exception: if MLflow is away or does not take it.
    """
    line = batch[0]
    if "metrics" in line:
        metrics = [
            Metric(key, value, line["time"], line["step"])
            for line in batch
            for key, value in line["metrics"].items()
            if line["step"] > sent.known.get(key, -1)
        ]
        if metrics:
            client.log_batch(sent.run, metrics=metrics)
        return len(metrics)
    if "params" in line:
        client.log_batch(sent.run, params=[Param(key, value) for key, value in line["params"].items()])
    elif "tag" in line:
        client.log_batch(sent.run, tags=[RunTag(key, value) for key, value in line["tag"].items()])
    elif "files" in line:
        _put(client, sent.run, {name: base64.b64decode(content) for name, content in line["files"].items()})
    elif "dataset" in line:
        tags = [InputTag("mlflow.data.context", "training")]
        client.log_inputs(sent.run, [DatasetInput(Dataset(**line["dataset"]), tags)])
    elif "model" in line:
        _register(client, spool, sent, line)
    elif "end" in line:
        for key, value in line["tags"].items():
            client.set_tag(sent.run, key, value)
        client.set_terminated(sent.run, line["end"], line["time"])
    return 0


def _register(client: MlflowClient, spool: Spool, sent: Sent, line: Line) -> None:
    """Register the winner; the last that the sweep named is the pick, in whatever order they arrive."""
    mine = f"tags.`{TRIAL_TAG}` = '{line['trial']}' and tags.`{PARENT_TAG}` = '{sent.run}'"
    runs = client.search_runs([sent.experiment], mine, max_results=1)
    if not runs:
        raise LookupError(f"trial {line['trial']} has no run yet")
    last = [other for other, _ in spool.lines() if "model" in other][-1]
    tags = {SWEEP_TAG: line["name"]}
    register(client, runs[0].info, Path(line["model"]), line["name"], tags, pick=line["trial"] == last["trial"])


def _put(client: MlflowClient, run: str, files: dict[str, bytes]) -> None:
    """Put files into the run's artifacts, by names that may have folders."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        client.log_artifacts(run, folder)


def _experiment(client: MlflowClient, artifacts: str | None) -> str:
    with contextlib.suppress(MlflowException):  # another sweep has just made it
        if client.get_experiment_by_name(EXPERIMENT) is None:
            client.create_experiment(EXPERIMENT, artifact_location=artifacts)
    found = client.get_experiment_by_name(EXPERIMENT)
    assert found is not None
    return found.experiment_id
