"""What is left of a sweep once its trials have ended, whatever goes wrong meanwhile."""

import dataclasses
import html
import json
import logging
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from recorded import begin, run_of

from sweeps import finalize as module
from sweeps.finalize import finalize
from sweeps.messages import Note, told_to
from sweeps.ranking import Row
from sweeps.recording import start_sweep
from sweeps.search import make_search, open_study
from sweeps.settings import Sweep
from trainer.config import Trial
from trainer.models import build_model

UNITS = {"l2": 2.0}


@pytest.fixture
def sweep(tmp_path, digits):
    trial = Trial(data=str(digits), model="resnet8")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    sweep = Sweep(name="s", storage=str(tmp_path), tracking_uri=uri, trial=trial, regularizers=("l2",), seeds=0)
    Path(sweep.folder).mkdir()
    return sweep


@pytest.fixture
def rows(sweep):
    """Of trials that trained to the end, with their checkpoints."""
    found = []
    for name, robust in (("none", 0.1), ("l2", 0.4)):
        folder = Path(sweep.trials_folder, name, "epoch_0001")
        folder.mkdir(parents=True)
        trial = dataclasses.replace(sweep.trial, regularizer=name, weight=6.0 if name == "l2" else 0.0)
        state = {"model": build_model("resnet8", 10).state_dict(), "trial": trial.to_dict(), "optimizer": {}}
        torch.save(state, folder / "state.pt")
        values = {"accuracy": 0.9, "robust_accuracy": robust}
        metrics = {f"{split}/{key}": value for split in ("val", "test") for key, value in values.items()}
        found.append(
            Row(
                trial_id=name,
                regularizer=name,
                weight=trial.weight,
                strength=trial.weight / 2,
                seed=0,
                status="finished",
                accuracy=0.9,
                robust_accuracy=robust,
                heatmap_ssim=0.0,
                heatmap_correlation=0.0,
                checkpoint=str(folder),
                metrics=metrics,
            )  # fmt: skip
        )
    return found


@pytest.fixture
def recording(sweep, rows):
    recording = start_sweep(sweep, {})
    for row in rows:
        log = begin(recording, row.trial_id, row.trial_id, regularizer=row.regularizer)
        hits = round(200 * row.robust_accuracy)
        log.report({}, 1)
        log.report({}, 2, {"test": "1" * hits + "0" * (200 - hits)})
    return recording


def artifacts(recording):
    client, run = MlflowClient(recording.sweep.tracking_uri), run_of(recording)
    return {file.path for folder in ("", "figures") for file in client.list_artifacts(run, folder) if not file.is_dir}


def test_a_sweep_leaves_result_report_figures_and_model(sweep, rows, recording):
    make_search(sweep, UNITS)
    said = []
    with told_to(lambda message: said.append(message.text)):
        finalize(sweep, UNITS, rows, recording)
    assert json.loads(Path(sweep.folder, "result.json").read_text())["finalists"] == []
    assert said == ["writing the report", "saving the winner as a model"]
    assert recording.drain() == recording.queued() == ""
    assert json.loads(Path(sweep.folder, "result.json").read_text())["pick"] == "l2"
    figures = {f"figures/{name}.png" for name in ("accuracies", "responses", "heatmaps-0")}
    assert artifacts(recording) == {"ranking.txt", "ranking.csv", "result.json", "report.html", *figures}
    run = MlflowClient(recording.sweep.tracking_uri).get_run(run_of(recording))
    assert run.data.metrics["best/test/robust_accuracy"] == 0.4
    sweep.save()
    Path(sweep.folder, "calibration.json").write_text("{}")
    said = sweep.result().verdict
    assert said.startswith("Pick: l2, trial l2: strength 3, robust accuracy 40.0 % on test, of one training.")
    assert "It leads the baseline by 30.0 points, 95 % interval +" in said
    assert run.data.tags["mlflow.note.content"].startswith(said)
    assert said in Path(sweep.folder, "ranking.txt").read_text()
    assert html.escape(said) in Path(sweep.folder, "report.html").read_text()
    assert MlflowClient(recording.sweep.tracking_uri).get_model_version_by_alias("s", "pick").run_id == run_of(
        recording, "l2"
    )
    assert (Path(sweep.folder) / "models/l2/MLmodel").exists()
    assert "optimizer" not in torch.load(Path(rows[0].checkpoint) / "state.pt"), "the baseline's, only weights"


def test_what_cannot_be_made_is_said_and_the_result_is_there(sweep, rows, recording, monkeypatch, caplog):
    def fail(*rest):
        raise RuntimeError("no space\nleft")

    monkeypatch.setattr(module, "write_report", fail)
    monkeypatch.setattr(module, "save_model", fail)
    messages = []  # and the study is gone
    with told_to(messages.append), caplog.at_level(logging.INFO, "sweeps.finalize"):
        finalize(sweep, UNITS, rows, recording)
    said = [message.text for message in messages]
    assert [one.text[:2] for one in messages if isinstance(one, Note) and one.warning] == ["no"] * 3
    assert "in fail\n" in caplog.text, "the trace is for the log"
    assert said[0].startswith("no importances: KeyError")
    assert said[1:] == [
        "writing the report", "no report: RuntimeError no space",
        "saving the winner as a model", "no model: RuntimeError no space",
    ]  # fmt: skip
    assert recording.drain() == ""
    assert artifacts(recording) == {"ranking.txt", "ranking.csv", "result.json"}
    assert json.loads(Path(sweep.folder, "result.json").read_text())["importances"] == {}


def test_another_machine_finds_the_study_in_the_bucket(sweep, object_store, tmp_path):
    object_store.create_bucket(Bucket="finalize")
    first, second = (
        dataclasses.replace(sweep, storage="s3://finalize/sweeps", local_dir=str(tmp_path / name))
        for name in ("first", "second")
    )
    for one in (first, second):
        one.local_folder.mkdir(parents=True)
    search = make_search(first, UNITS)
    search.suggest("t")
    search.save(str(tmp_path / "searcher"))
    (second.local_folder / "study.journal").touch()  # as a process left it that was killed
    assert [trial.number for trial in open_study(second).trials] == [trial.number for trial in open_study(first).trials]
