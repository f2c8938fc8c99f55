"""A sweep whose driver is killed, or stopped by the keyboard, goes on as if nothing had happened."""

import contextlib
import json
import signal
import time
from pathlib import Path

import psutil
import pytest
import torch
from mlflow import MlflowClient
from mlflow_server import run_of

from sweeps.tracking.runs import TRIAL_TAG
from trainer.config import Trial
from trainer.fit import fit


def terminated(folder):
    """Ids of the trials that Tune's last snapshot knows as ended."""
    for snapshot in sorted(folder.glob("experiment_state*.json"))[-1:]:
        trials = [json.loads(data) for data, _ in json.loads(snapshot.read_text())["trial_data"]]
        return {trial["trial_id"] for trial in trials if trial["status"] == "TERMINATED"}
    return set()


@pytest.mark.slow
def test_a_sweep_whose_driver_was_killed_is_resumed(start, script, digits, tmp_path):
    arguments = ["--data", digits, "--model", "resnet8", "--regularizers", "l2", "--trials-per-regularizer", 2,
                 "--epochs", 2, "--images-per-epoch", 256, "--robust-images", 8, "--seeds", 0, "--storage", tmp_path,
                 "--name", "killed"]  # fmt: skip
    driver = start("all_regularizers.py", *arguments, TUNE_GLOBAL_CHECKPOINT_S="1")  # before the last trial ends
    line = next(line for line in driver.stdout if line.startswith("[1/4]"))
    while not terminated(tmp_path / "killed/tune"):
        time.sleep(0.1)  # Tune keeps its state every few seconds; what ended since then is taken up again
    driver.kill()
    driver.wait()
    known = terminated(tmp_path / "killed/tune")
    status, out, err = script("-m", "sweeps.tracking", "flush", "--storage", tmp_path, "--name", "killed")
    assert status == 0, (out, err)
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("heatmap-sweeps").experiment_id
    children = f"tags.`{TRIAL_TAG}` != ''"
    ended = {
        run.info.run_id: run.info.end_time
        for run in client.search_runs([experiment], children)
        if run.data.tags[TRIAL_TAG] in known
    }
    assert len(ended) == len(known)
    assert all(ended.values()), line

    status, out, err = script("all_regularizers.py", *arguments, timeout=60)
    assert status == 2
    assert "--resume" in err
    status, out, err = script(
        "all_regularizers.py", "--name", "killed", "--storage", tmp_path, "--resume", timeout=500
    )  # fmt: skip
    assert status == 0, (out, err)
    assert "[4/4]" in out
    assert f"[{len(known)}/4]" not in out
    result = json.loads((tmp_path / "killed" / "result.json").read_text())
    assert sorted(row["regularizer"] for row in result["trials"]) == ["l2", "l2", "none", "none"]
    assert sorted(row["seed"] for row in result["trials"]) == [0, 0, 0, 1], "only baselines have others"
    runs = {run.info.run_id: run for run in client.search_runs([experiment], children)}
    assert set(ended) < {run_of(client, row["trial_id"]) for row in result["trials"]} <= set(runs)
    assert all(runs[run].info.end_time == end for run, end in ended.items()), "an ended trial was done again"
    assert {run.info.status for run in runs.values()} <= {"FINISHED", "KILLED"}
    for row in result["trials"]:
        steps = [point.step for point in client.get_metric_history(run_of(client, row["trial_id"]), "step/loss")]
        last = torch.load(Path(row["checkpoint"]) / "state.pt", weights_only=True)["step"]
        assert sorted(steps) == list(range(1, last + 1))


def stop(driver, times, timeout):
    """Press Ctrl-C once workers are there; exit status, output and errors."""
    mine = psutil.Process(driver.pid)

    def workers():
        for child in mine.children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it may have ended meanwhile
                yield "RayTrainWorker" in "".join(child.cmdline())

    while sum(workers()) < 2:
        assert driver.poll() is None
        time.sleep(0.2)
    for _ in range(times):
        driver.send_signal(signal.SIGINT)
        time.sleep(1)
    out, err = driver.communicate(timeout=timeout)
    return driver.returncode, out, err


@pytest.mark.slow
def test_a_sweep_stopped_by_the_keyboard_loses_no_step(start, script, digits, tmp_path):
    arguments = ["--data", digits, "--model", "resnet8", "--batch-size", 32, "--regularizers", "l2",
                 "--images-per-epoch", 1600, "--epochs", 1, "--scheduler", "none", "--robust-images", 8, "--seeds", 0,
                 "--storage", tmp_path, "--name", "stopped"]  # fmt: skip
    status, out, err = stop(start("all_regularizers.py", *arguments), times=1, timeout=120)
    assert status == 130, (out, err)
    assert "every trial saved its state" in out
    assert err.splitlines()[-1].startswith("interrupted; ")
    assert "Traceback" not in err
    saved = sorted((tmp_path / "stopped/trials").glob("*/epoch_0000_step_*/state.pt"))
    assert len(saved) == 2
    steps = [torch.load(path, weights_only=True)["step"] for path in saved]
    assert all(0 < step < 50 for step in steps)

    again = ["--resume", "--storage", tmp_path, "--name", "stopped"]
    status, out, err = stop(start("all_regularizers.py", *again), times=2, timeout=60)
    assert status == 130, (out, err)
    start.assert_gone()

    status, out, err = script("all_regularizers.py", *again, timeout=300)
    assert status == 0, (out, err)
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    for row in json.loads((tmp_path / "stopped/result.json").read_text())["trials"]:
        steps = [point.step for point in client.get_metric_history(run_of(client, row["trial_id"]), "step/loss")]
        assert sorted(steps) == list(range(1, 51))
        state = torch.load(Path(row["checkpoint"]) / "state.pt", weights_only=True)
        whole = []
        fit(Trial(**state["trial"]), lambda report, state, whole=whole: whole.append(state))
        for name, value in whole[-1]["model"].items():
            assert torch.equal(value, state["model"][name]), (row["regularizer"], name)
