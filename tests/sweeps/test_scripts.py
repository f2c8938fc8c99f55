"""The shipped scripts as a user runs them: bad input, and a whole small sweep with its resumption."""

import json
import re
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
import torch
from mlflow import MlflowClient
from mlflow_server import run_of
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from sweeps import all_regularizers, run
from sweeps.tracking.runs import SWEEP_TAG, TRIAL_TAG
from trainer.config import UsageError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def weights_of_another_shape(tmp_path):
    from trainer.models import build_model

    path = tmp_path / "other.pt"
    torch.save(build_model("resnet8", 7).state_dict(), path)
    return path


def test_scripts_that_are_imported_leave_the_search_path():
    modules = "sweeps.all_regularizers, sweeps.resume_best"
    code = f"import sys; before = list(sys.path); import {modules}; print(sys.path == before)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_bad_input_is_one_line_before_anything_starts(
    script, tmp_path, digits, weights_of_another_shape, monkeypatch, capsys
):
    empty, file, garbage = tmp_path / "empty", tmp_path / "file", tmp_path / "garbage.pt"
    empty.mkdir()
    file.write_text("")
    garbage.write_bytes(b"no weights")
    own = ["--data", digits, "--model", "resnet8"]
    cases = [
        (["--regularizers", "l2,sim"], "--regularizers sim: is unknown; did you mean ssim?"),
        (["--model", "resnet9"], "--model resnet9: is unknown; did you mean resnet8"),
        (["--data", tmp_path / "nowhere", "--model", "resnet8"], "no such folder"),
        (["--data", empty, "--model", "resnet8"], "no train-*.tar"),
        ([*own, "--checkpoint", weights_of_another_shape], "of 7 classes, the data have 10"),
        ([*own, "--new-head"], "--new-head: needs --checkpoint"),
        ([*own, "--checkpoint", "pretrained"], "give a file, or --model timm:resnet8"),
        ([*own, "--checkpoint", garbage], "not a readable weights file"),
        ([*own, "--images-per-epoch", "8"], "--images-per-epoch 8: is less than one step"),
        ([*own, "--strengths", "1,5000"], "--strengths 5000: give numbers from 0.1 to 1000"),
        ([*own, "--batch-size", "2000", "--images-per-epoch", "4000"], "fewer than one step"),
        ([*own, "--storage", file], "cannot be written"),
        (["--resume", "--name", "nothing"], "no sweep 'nothing'"),
        (["--extend", "1", "--name", "nothing"], "no sweep 'nothing'"),
        (["--extend", "1"], "--extend 1: needs --name"),
        ([*own, "--batch-size", "2000"], "fewer than one batch of 2000"),
        (["--strengths", "10000"], "--strengths 10000: give numbers from 0.1 to 1000"),
        (["--seeds", "1"], "at least 2"),
        (["--trials-per-regularizer", "0"], "at least 1"),
        (["--tracking-uri", "http://:5000"], "no MLflow answers"),
        (["--tracking-uri", "htp:/typo"], "no MLflow answers"),
    ]
    for number, (arguments, message) in enumerate(cases):
        storage = [] if "--storage" in arguments else ["--storage", tmp_path / "runs"]
        if number == 0:
            status, out, err = script("all_regularizers.py", *arguments, *storage)
        else:  # in this process: the imports take seconds
            monkeypatch.setattr(sys, "argv", ["all_regularizers.py", *map(str, arguments), *map(str, storage)])
            status = all_regularizers.main()
            out, err = capsys.readouterr()
        assert status == 2, (arguments, out, err)
        assert message in err, arguments
        assert err.startswith("error: "), arguments
        assert err.count("\n") == 1, arguments
    assert not list((tmp_path / "runs").glob("*/sweep.yaml"))
    assert not list((tmp_path / "runs").glob("*/tune"))


@pytest.mark.slow
def test_a_sweep_that_cannot_be_calibrated_leaves_its_name_free(tmp_path, digits, monkeypatch, capsys):
    def refuse(*given, **named):
        raise UsageError("cannot be calibrated")

    monkeypatch.setattr(run, "calibrate", refuse)
    arguments = ["--data", digits, "--model", "resnet8", "--storage", tmp_path, "--name", "mine"]
    monkeypatch.setattr(sys, "argv", ["all_regularizers.py", *map(str, arguments)])
    for _ in range(2):
        assert all_regularizers.main() == 2
        assert capsys.readouterr().err == "error: cannot be calibrated\n"


def test_a_start_that_fails_leaves_no_folder(tmp_path, digits, monkeypatch, capsys):
    def refuse(*given, **named):
        raise UsageError("no room")

    monkeypatch.setattr(run, "_joined", refuse)
    arguments = ["--data", digits, "--model", "resnet8", "--storage", tmp_path / "runs", "--name", "mine"]
    assert all_regularizers.main([*map(str, arguments)]) == 2
    assert capsys.readouterr().err == "error: no room\n"
    assert not list((tmp_path / "runs").iterdir())


def test_ctrl_c_before_the_search_promises_no_resumption(tmp_path, digits, monkeypatch, capsys):
    def interrupted(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "check", interrupted)
    arguments = ["--data", digits, "--model", "resnet8", "--storage", tmp_path, "--name", "mine"]
    monkeypatch.setattr(sys, "argv", ["all_regularizers.py", *map(str, arguments)])
    assert all_regularizers.main() == 130
    assert capsys.readouterr().err == "interrupted before the search began; the same command begins again\n"


@pytest.mark.slow
def test_a_small_sweep_end_to_end_and_its_pick_resumed(start, script, tmp_path):
    status, out, err = script(
        "all_regularizers.py", "--regularizers", "l2", "--images-per-epoch", 256, "--workers-per-trial", 2,
        "--strengths", 3, "--scheduler", "none", "--evaluate", "full", "--robust-images", 24, "--seeds", 0,
        "--storage", tmp_path, "--name", "small", timeout=500,
    )  # fmt: skip
    assert status == 0, (out, err)
    offered = re.search(r"Train the pick further:  .*(resume_best.py|resume-best) --name small", out)
    assert bool(offered) == ("Pick: none, trial" not in out), "which wins may differ between CPUs"
    assert err == "", "nothing of Ray's internals"

    result = json.loads((tmp_path / "small" / "result.json").read_text())
    assert {row["regularizer"] for row in result["trials"]} == {"none", "l2"}
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("heatmap-sweeps").experiment_id
    (parent,) = client.search_runs([experiment], f"tags.`{SWEEP_TAG}` = 'small'")
    assert parent.info.status == "FINISHED"
    tags = {row["trial_id"]: row["number"] for row in result["trials"]}
    report = (tmp_path / "small" / "report.html").read_text()
    assert Path(client.download_artifacts(parent.info.run_id, "report.html")).read_text() == report
    assert f"trial #{tags[result['pick']]:02d}" in report
    assert out.index("start: accuracy") < out.index("warning: Only 24 images will be attacked") < out.index("searching")
    assert "Only 24 images will be attacked" in parent.data.tags["warnings"]
    assert "Only 24 images will be attacked" in parent.data.tags["mlflow.note.content"]
    assert "Warning:</strong> Only 24 images will be attacked" in report
    assert parent.data.metrics["start/accuracy"] > 0.5
    assert parent.data.metrics["start/steps_per_epoch"] == 4
    space = json.loads(Path(client.download_artifacts(parent.info.run_id, "search_space.json")).read_text())
    assert space["l2"] == pytest.approx([row["weight"] for row in result["trials"] if row["weight"]])
    assert "No heatmaps" not in report
    for row in result["trials"]:
        run = client.get_run(run_of(client, row["trial_id"]))
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.params["regularizer"] == row["regularizer"]
        assert float(run.data.params["weight"]) == row["weight"]
        assert run.data.metrics["val/robust_accuracy"] == pytest.approx(row["robust_accuracy"])
        assert run.data.tags["checkpoint"] == row["checkpoint"]
        steps = [point.step for point in client.get_metric_history(run_of(client, row["trial_id"]), "step/loss")]
        assert sorted(steps) == list(range(1, max(steps) + 1))
        state = torch.load(Path(row["checkpoint"]) / "state.pt", weights_only=True)
        assert state["step"] == max(steps)
    (baseline,) = (row for row in result["trials"] if row["regularizer"] == "none")
    assert baseline["status"] == "finished"
    assert baseline["accuracy"] > 0.8
    assert sorted(row["strength"] for row in result["trials"]) == pytest.approx([0, 3])

    picked = next(row for row in result["trials"] if row["trial_id"] == result["pick"])
    test = {name: value for name, value in picked["metrics"].items() if name.startswith("test/")}
    said = " ".join(out.split())
    assert f"accuracy {100 * test['test/accuracy']:.1f} %, robust {100 * test['test/robust_accuracy']:.1f} %" in said
    logged = client.get_run(run_of(client, picked["trial_id"])).data.metrics
    assert {name: logged[name] for name in test} == test
    # One process measures what the trial's two workers did, to the last digit.
    status, _, err = script(
        "-m", "trainer.evaluate", "--checkpoint", picked["checkpoint"], "--data", tmp_path / "small/digits",
        "--images", 24, "--out", tmp_path / "report", "--gallery", 0, timeout=300,
    )  # fmt: skip
    assert status == 0, err
    (model,) = json.loads((tmp_path / "report/report.json").read_text())["models"]
    assert model["metrics"] == test
    assert len(test) > 90

    status, _, err = script("all_regularizers.py", "--regularizers", "l2", "--storage", tmp_path, "--name", "small")
    assert status == 2
    assert "--resume" in err

    status, out, err = script(
        "resume_best.py", "--name", "small", "--epochs", 1, "--storage", tmp_path, timeout=300
    )  # fmt: skip
    assert status == 0, (out, err)
    origin = run_of(client, picked["trial_id"])
    resumed = [run for run in client.search_runs([experiment]) if run.data.tags.get("resumed_from") == origin]
    assert len(resumed) == 1
    assert resumed[0].data.tags[TRIAL_TAG].startswith("resume-")
    assert resumed[0].info.status == "FINISHED"
    state = torch.load(Path(resumed[0].data.tags["checkpoint"]) / "state.pt", weights_only=True)
    assert state["epoch"] == torch.load(Path(picked["checkpoint"]) / "state.pt", weights_only=True)["epoch"] + 1
    start.assert_gone()


@pytest.mark.slow
def test_finalists_are_repeated_and_a_sweep_extended(start, script, tmp_path, digits, monkeypatch, capsys):
    status, out, err = script(
        "all_regularizers.py", "--data", digits, "--model", "resnet8", "--regularizers", "l2", "--epochs", 1,
        "--images-per-epoch", 128, "--robust-images", 8, "--seeds", 2, "--max-accuracy-drop", 0.9,
        "--storage", tmp_path, "--name", "s",
        "-v", timeout=400,
    )  # fmt: skip
    assert status == 0, (out, err)
    assert re.search(r"\(RayTrainWorker pid=\d+\)", err)
    assert out.index("then up to 4 more: the best weights again with --seeds 2") < out.index("starting Ray")
    path, extend = tmp_path / "s/result.json", ("--extend", 1, "--storage", tmp_path, "--name", "s")
    first = json.loads(path.read_text())
    path.rename(tmp_path / "kept.json")  # as if the sweep had not ended
    monkeypatch.setattr(sys, "argv", ["all_regularizers.py", *map(str, extend)])
    assert all_regularizers.main() == 2
    assert "error: --extend 1: sweep s has not ended; --resume continues it" in capsys.readouterr().err
    (tmp_path / "kept.json").rename(path)
    driver = start("all_regularizers.py", *extend, "--max-concurrent", 1)
    assert any(": epoch " in line or line.startswith("[1/2]") for line in driver.stdout), driver.stderr.read()
    start.kill()  # in the middle of the extension, with all its trials
    resume = ("--resume", "--storage", tmp_path, "--name", "s")
    status, out, err = script("all_regularizers.py", *resume, timeout=400)
    assert status == 0, (out, err)
    result = json.loads(path.read_text())

    trials = {row["trial_id"]: row for row in result["trials"]}
    assert {row["trial_id"] for row in first["trials"]} < set(trials)
    assert sorted((row["regularizer"], row["seed"]) for row in trials.values()) == [
        ("l2", 0), ("l2", 0), ("none", 0), ("none", 1)
    ]  # fmt: skip
    assert f"Pick: {trials[result['pick']]['regularizer']}, trial #{trials[result['pick']]['number']:02d}: " in out
    assert result["baseline"]["trials"] == 4, "of the search and repeated"
    assert sorted(row["number"] for row in trials.values()) == sorted({row["number"] for row in trials.values()})
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "s/study.journal")))
    study = optuna.load_study(study_name="s", storage=storage)
    whole = [trial for trial in study.trials if trial.state.name == "COMPLETE"]  # one may be lost and asked again
    assert sorted(trial.params["regularizer"] for trial in whole) == ["l2", "l2", "none", "none"]
    again = {finalist["regularizer"]: set(finalist["trials"]) for finalist in first["finalists"]}
    now = {finalist["regularizer"]: set(finalist["trials"]) for finalist in result["finalists"]}
    assert now["none"] == again["none"], "what was repeated before was repeated again"
