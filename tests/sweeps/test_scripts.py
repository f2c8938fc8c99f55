"""The shipped scripts as a user runs them: bad input, and a whole small sweep with its resumption."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from mlflow import MlflowClient

from sweeps.tracking import SWEEP_TAG, TRIAL_TAG

ROOT = Path(__file__).parents[2]


def script(name, *arguments, timeout=60):
    """Run a script in a session of its own and end whatever it leaves."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "sweeps" / name), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"COLUMNS": "80"},
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, out, err


@pytest.fixture
def weights_of_another_shape(tmp_path):
    from trainer.models import build_model

    path = tmp_path / "other.pt"
    torch.save(build_model("resnet8", 7).state_dict(), path)
    return path


def test_bad_input_is_one_line_before_anything_starts(tmp_path, digits, weights_of_another_shape):
    empty, file, garbage = tmp_path / "empty", tmp_path / "file", tmp_path / "garbage.pt"
    empty.mkdir()
    file.write_text("")
    garbage.write_bytes(b"no weights")
    own = ["--data", digits, "--model", "resnet8"]
    cases = [
        (["--regularizers", "l2,sim"], "unknown 'sim'"),
        (["--model", "resnet9"], "'resnet9' is unknown"),
        (["--data", tmp_path / "nowhere", "--model", "resnet8"], "no such folder"),
        (["--data", empty, "--model", "resnet8"], "no train-*.tar"),
        ([*own, "--checkpoint", weights_of_another_shape], "does not fit the model"),
        ([*own, "--checkpoint", garbage], "not a readable weights file"),
        ([*own, "--images-per-epoch", "8"], "less than one step"),
        ([*own, "--batch-size", "2000", "--images-per-epoch", "4000"], "fewer than one step"),
        ([*own, "--storage", file], "cannot be written"),
        (["--resume", "--name", "nothing"], "no sweep 'nothing'"),
        (["--trials-per-regularizer", "0"], "at least 1"),
    ]
    for arguments, message in cases:
        storage = [] if "--storage" in arguments else ["--storage", tmp_path / "runs"]
        status, out, err = script("all_regularizers.py", *arguments, *storage)
        assert status == 2, (arguments, out, err)
        assert message in err, arguments
        assert err.startswith("error: "), arguments
        assert err.count("\n") == 1, arguments
    assert not list((tmp_path / "runs").glob("*/settings.json"))
    assert not list((tmp_path / "runs").glob("*/tune"))


def test_help_names_every_flag():
    status, out, _ = script("all_regularizers.py", "--help")
    assert status == 0
    for flag in ("data", "model", "checkpoint", "regularizers", "trials-per-regularizer", "epochs", "images-per-epoch",
                 "batch-size", "workers-per-trial", "gpus-per-worker", "max-concurrent", "storage", "tracking-uri",
                 "name", "seed", "resume"):  # fmt: skip
        assert f"--{flag}" in out


def ray_processes():
    return {
        p.pid for p in psutil.process_iter(["name"]) if p.info["name"].startswith(("ray::", "raylet", "gcs_server"))
    }


@pytest.mark.slow
def test_a_small_sweep_end_to_end_and_its_pick_resumed(tmp_path):
    before = ray_processes()
    status, out, err = script(
        "all_regularizers.py", "--regularizers", "l2", "--images-per-epoch", 256, "--workers-per-trial", 2,
        "--storage", tmp_path, "--name", "small", timeout=500,
    )  # fmt: skip
    assert status == 0, (out, err)
    assert "resume_best.py --name small" in out
    assert "Traceback" not in err

    result = json.loads((tmp_path / "small" / "result.json").read_text())
    assert {row["regularizer"] for row in result["trials"]} == {"none", "l2"}
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("heatmap-sweeps").experiment_id
    (parent,) = client.search_runs([experiment], f"tags.`{SWEEP_TAG}` = 'small'")
    assert parent.info.status == "FINISHED"
    for row in result["trials"]:
        run = client.get_run(row["run"])
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.params["regularizer"] == row["regularizer"]
        assert float(run.data.params["weight"]) == row["weight"]
        assert run.data.metrics["val/robust_accuracy"] == pytest.approx(row["robust_accuracy"])
        assert run.data.tags["checkpoint"] == row["checkpoint"]
        steps = [point.step for point in client.get_metric_history(row["run"], "step/loss")]
        assert sorted(steps) == list(range(1, max(steps) + 1))
        state = torch.load(Path(row["checkpoint"]) / "state.pt", weights_only=True)
        assert state["step"] == max(steps)
    (baseline,) = (row for row in result["trials"] if row["regularizer"] == "none")
    assert baseline["status"] == "finished"
    assert baseline["accuracy"] > 0.8

    status, _, err = script("all_regularizers.py", "--regularizers", "l2", "--storage", tmp_path, "--name", "small")
    assert status == 2
    assert "--resume" in err

    status, out, err = script(
        "resume_best.py", "--name", "small", "--epochs", 1, "--storage", tmp_path, timeout=300
    )  # fmt: skip
    assert status == 0, (out, err)
    picked = next(row for row in result["trials"] if row["trial_id"] == result["pick"])
    resumed = [run for run in client.search_runs([experiment]) if run.data.tags.get("resumed_from") == picked["run"]]
    assert len(resumed) == 1
    assert resumed[0].data.tags[TRIAL_TAG].startswith("resume-")
    assert resumed[0].info.status == "FINISHED"
    state = torch.load(Path(resumed[0].data.tags["checkpoint"]) / "state.pt", weights_only=True)
    assert state["epoch"] == torch.load(Path(picked["checkpoint"]) / "state.pt", weights_only=True)["epoch"] + 1
    assert not ray_processes() - before
