"""How a sweep looks in MLflow: one run for the sweep, one below it for each trial, found again by their tags."""

import contextlib
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag, ViewType
from mlflow.exceptions import MlflowException

from sweeps.tracking.model import register
from trainer.locations import open_file

EXPERIMENT = "heatmap-sweeps"
SWEEP_TAG = "heatmap_sweeps.sweep"
TRIAL_TAG = "heatmap_sweeps.trial"
PARENT_TAG = "mlflow.parentRunId"
BATCH = 1000  # most that the server takes at once


def find_experiment(client: MlflowClient, artifacts: str | None) -> str:
    """Id of the experiment of all sweeps, which is created if need be, with this place for its artifacts.

    Where it was deleted, it is restored: MLflow gives its name to no other.
    """
    with contextlib.suppress(MlflowException):  # another sweep has just made it
        if client.get_experiment_by_name(EXPERIMENT) is None:
            client.create_experiment(EXPERIMENT, artifact_location=artifacts)
    found = client.get_experiment_by_name(EXPERIMENT)
    assert found is not None
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return found.experiment_id


def find_run(client: MlflowClient, experiment: str, identity: dict[str, str], view: int = ViewType.ACTIVE_ONLY) -> str:
    """Id of the run with these tags, one that was not deleted if there is one; empty if there is none."""
    query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in identity.items())
    found = [run.info for run in client.search_runs([experiment], query, view)]
    found.sort(key=lambda info: info.lifecycle_stage != "active")
    return found[0].run_id if found else ""


def start_run(
    client: MlflowClient, experiment: str, name: str, time: int, identity: dict[str, str], tags: dict[str, str]
) -> str:
    """Create a run, or set the one with this identity running again, which is restored where it was deleted.

    Args:
        name: name of a new run.
        time: begin of a new run, in ms since 1970.
        identity: tags by which the run is found.
        tags: others.

    Returns:
        Its id.
    """
    run = find_run(client, experiment, identity, ViewType.ALL)
    if not run:
        return client.create_run(experiment, start_time=time, tags=identity | tags, run_name=name).info.run_id
    if client.get_run(run).info.lifecycle_stage == "deleted":
        client.restore_run(run)
    log(client, run, tags=tags)
    client.update_run(run, status="RUNNING")
    return run


def log(
    client: MlflowClient,
    run: str,
    metrics: Sequence[Metric] = (),
    params: Mapping[str, str] | None = None,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Log in as few requests as the server takes.

    Args:
        metrics: any number of points; one that the run has, of the same time, changes nothing.
        params: logged if the run does not have them: MLflow lets nobody change one.
        tags: tags to set.
    """
    known = client.get_run(run).data.params if params else {}
    new = [Param(key, value) for key, value in (params or {}).items() if key not in known]
    first = BATCH - len(new) - len(tags or {})  # the server counts them together
    if metrics or new or tags:
        client.log_batch(run, metrics[:first], new, [RunTag(key, value) for key, value in (tags or {}).items()])
    for begin in range(first, len(metrics), BATCH):
        client.log_batch(run, metrics=metrics[begin : begin + BATCH])


def log_dataset(client: MlflowClient, run: str, dataset: dict[str, str]) -> None:
    """Log what the run reads."""
    tags = [InputTag("mlflow.data.context", "training")]
    client.log_inputs(run, [DatasetInput(Dataset(**dataset), tags)])


def log_files(client: MlflowClient, run: str, folder: str, names: Iterable[str]) -> None:
    """Put files of a folder or object store into the run's artifacts, by the same names."""
    with tempfile.TemporaryDirectory() as partial:
        for name in names:
            path = Path(partial, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            with open_file(f"{folder}/{name}") as stream:
                path.write_bytes(stream.read())
        client.log_artifacts(run, partial)


def register_pick(
    client: MlflowClient, experiment: str, parent: str, trial_id: str, folder: Path, name: str, pick: bool
) -> None:
    """Register a trial's model under the sweep's name.

    Raises:
        LookupError: if MLflow does not have the trial yet.
    """
    run = find_run(client, experiment, {TRIAL_TAG: trial_id, PARENT_TAG: parent})
    if not run:
        raise LookupError(f"trial {trial_id} has no run yet")
    register(client, client.get_run(run).info, folder, name, {SWEEP_TAG: name}, pick=pick)
