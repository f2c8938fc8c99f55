"""Two sweeps at the same time under one storage and one MLflow server."""

import json

import pytest
from mlflow import MlflowClient
from mlflow_server import run_of

from sweeps.folder import driving
from sweeps.settings import Sweep
from sweeps.tracking.runs import PARENT_TAG, SWEEP_TAG, TRIAL_TAG
from trainer.config import Trial, UsageError


@pytest.mark.slow
def test_two_sweeps_at_once_keep_apart(start, server, digits, tmp_path):
    server.start()
    arguments = ["--data", digits, "--model", "resnet8", "--regularizers", "l2", "--epochs", 1, "--robust-images", 8,
                 "--images-per-epoch", 128, "--seeds", 0, "--max-concurrent", 1, "--storage", tmp_path / "runs",
                 "--tracking-uri", server.uri]  # fmt: skip
    names = ("one", "two")
    drivers = {
        name: start("all_regularizers.py", *arguments, "--name", name, "--objectives", objectives)
        for name, objectives in zip(names, ("robust", "both"), strict=True)
    }
    ends = {name: driver.communicate(timeout=400) for name, driver in drivers.items()}
    assert {name: driver.returncode for name, driver in drivers.items()} == dict.fromkeys(names, 0), ends
    client = MlflowClient(server.uri)
    (experiment,) = (e.experiment_id for e in client.search_experiments() if e.name == "heatmap-sweeps")
    parents = client.search_runs([experiment], f"tags.`{SWEEP_TAG}` != ''")
    assert sorted(run.data.tags[SWEEP_TAG] for run in parents) == ["one", "two"]
    for parent in parents:
        name = parent.data.tags[SWEEP_TAG]
        rows = json.loads((tmp_path / "runs" / name / "result.json").read_text())["trials"]
        assert sorted(row["regularizer"] for row in rows) == ["l2", "none"]
        children = client.search_runs([experiment], f"tags.`{PARENT_TAG}` = '{parent.info.run_id}'")
        assert {run.info.run_id: run.data.tags[TRIAL_TAG] for run in children} == {
            run_of(client, row["trial_id"]): row["trial_id"] for row in rows
        }
        for row in rows:
            assert [p.step for p in client.get_metric_history(run_of(client, row["trial_id"]), "step/loss")] == [1, 2]
            assert f"/{name}/trials/{row['trial_id']}/" in row["checkpoint"]
    start.assert_gone()


def test_a_sweep_has_one_driver_at_a_time(tmp_path, digits):
    trial = Trial(data=str(digits), model="resnet8")
    sweep = Sweep(name="s", storage=str(tmp_path), trial=trial, regularizers=("l2",))
    with driving(sweep, new=True):
        with pytest.raises(UsageError, match="another process drives this sweep"), driving(sweep):
            pass
        sweep.save()
    with pytest.raises(UsageError, match="already under"), driving(sweep, new=True):
        pass
    with driving(sweep):
        pass
