"""What MLflow has of a trial, and what it should have."""

from pathlib import Path

from mlflow import MlflowClient
from recorded import run_of

from trainer.trial_log import read_points, read_report


def client_of(recording):
    return MlflowClient(recording.sweep.tracking_uri)


def points(client, run):
    return sorted(
        (point.key, point.step, point.value, point.timestamp)
        for name in client.get_run(run).data.metrics
        for point in client.get_metric_history(run, name)
    )


def recorded(recording, key):
    folder = f"{recording.sweep.trials_folder}/{key}"
    epochs = range(1, 1 + len(list(Path(folder, "points").iterdir())))
    told = [point for epoch in epochs for point in read_points(folder, epoch)]
    told += [report for epoch in epochs if (report := read_report(folder, epoch))]
    return sorted(
        (name, point["step"], value, point["time"]) for point in told for name, value in point["metrics"].items()
    )


def assert_all_there(recording, key, last):
    client, run = client_of(recording), run_of(recording, key)
    there = points(client, run)
    assert there == recorded(recording, key)
    wanted = [("step/loss", step, 1 / step) for step in range(1, last + 1)]
    assert [point[:3] for point in there if point[0] == "step/loss"] == wanted
    return client.get_run(run)
