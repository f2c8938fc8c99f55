"""A whole sweep whose storage is an S3 bucket, and that loses the machine that drove it on the way."""

import shutil
import time

import pytest
from mlflow import MlflowClient
from mlflow_server import run_of

from trainer.checkpoint_io import load_state
from trainer.config import Trial
from trainer.locations import folders_in, read_json


def points(client, run):
    return [point.step for point in client.get_metric_history(run, "step/loss")]


@pytest.mark.slow
def test_a_sweep_in_a_bucket_outlives_the_machine_that_drives_it(start, script, object_store, tmp_path):
    object_store.create_bucket(Bucket="sweeps")
    where = ["--storage", "s3://sweeps/runs", "--name", "s"]
    driver = start(
        "all_regularizers.py", "--regularizers", "l2", "--strengths", 30, "--images-per-epoch", 256, "--epochs", 2,
        "--max-concurrent", 1, "--robust-images", 8, "--seeds", 0, "--scheduler", "none", "--local-dir", tmp_path,
        *where,
    )  # fmt: skip
    assert any(line.startswith("[1/2]") for line in driver.stdout), driver.stderr.read()
    trials = "s3://sweeps/runs/s/trials"
    while sum(n.startswith("epoch_") for trial in folders_in(trials) for n in folders_in(f"{trials}/{trial}")) < 3:
        assert driver.poll() is None
        time.sleep(0.1)  # until the second trial has kept its first epoch
    start.kill()
    shutil.rmtree(tmp_path / "s")  # the study's journal and the event log; MLflow's database lies elsewhere
    status, out, err = script("all_regularizers.py", *where, "--resume", timeout=400)
    assert status == 0, (out, err)

    result = read_json("s3://sweeps/runs/s/result.json")
    assert sorted((row["regularizer"], row["seed"]) for row in result["trials"]) == [("l2", 0), ("none", 0)]
    assert sorted(row["strength"] for row in result["trials"]) == pytest.approx([0, 30])
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    for row in result["trials"]:
        assert row["checkpoint"].startswith(f"{trials}/{row['trial_id']}/epoch_")
        state = load_state(row["checkpoint"])
        assert state["step"] == 16
        assert ("optimizer" in state) == (row["trial_id"] == result["pick"])
        assert points(client, run_of(client, row["trial_id"])) == list(range(1, 17))
        params = client.get_run(run_of(client, row["trial_id"])).data.params
        assert (params["digest"], float(params["weight"])) == (Trial(**state["trial"]).digest(), row["weight"])
    offered = "resume_best.py --name s --storage s3://sweeps/runs" in out
    assert offered == ("Pick: none, trial" not in out), "which wins may differ between CPUs"

    loser = next(row["trial_id"] for row in result["trials"] if row["trial_id"] != result["pick"])
    status, _, err = script("resume_best.py", *where, "--trial", loser)
    assert status == 2
    assert "only its weights were kept" in err
    status, out, err = script("resume_best.py", *where, "--epochs", 1, timeout=200)
    assert status == 0, (out, err)
    assert load_state(out.partition("checkpoint: ")[2].strip())["epoch"] == 3
    start.assert_gone()
