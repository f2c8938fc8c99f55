"""The winner as a model in MLflow's registry; that it serves is seen in test_browser.py."""

import shutil
from pathlib import Path

import mlflow
import pytest
import torch
from mlflow import MlflowClient

from sweeps.spool import Spool
from sweeps.tracking import start_sweep
from sweeps.tracking.delivery import Delivery
from sweeps.tracking.model import save_model
from trainer.config import Trial
from trainer.evaluate import classifier
from trainer.evaluate.checkpoints import load_subject
from trainer.evaluate.heatmaps import heatmap
from trainer.models import build_model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, digits):
    trial = Trial(data=str(digits), model="resnet8", regularizer="l2", weight=0.5)
    folder = tmp_path_factory.mktemp("trial") / "epoch_0001"
    folder.mkdir()
    torch.manual_seed(1)
    torch.save({"model": build_model("resnet8", 10).state_dict(), "trial": trial.to_dict()}, folder / "state.pt")
    return str(folder)


@pytest.fixture(scope="module")
def saved(checkpoint, digits, tmp_path_factory):
    return save_model(checkpoint, str(digits), tmp_path_factory.mktemp("models") / "t1")


def test_a_saved_model_is_a_graph_without_pickle_that_answers_and_explains_as_the_trial_did(saved, checkpoint, digits):
    assert {path.name for path in (saved / "data").iterdir()} == {"model.pt2"}
    subject = load_subject(checkpoint, str(digits), {})
    loaded = mlflow.pytorch.load_model(str(saved))
    images, labels = torch.randn(5, 3, 32, 32), torch.arange(5)
    with classifier(subject.model, "float32") as ours, classifier(loaded, "float32") as theirs:
        assert torch.equal(ours(images), theirs(images))
        assert torch.equal(heatmap(ours, images, labels), heatmap(theirs, images, labels))
    example = mlflow.pyfunc.load_model(str(saved)).input_example
    assert example.shape == (2, 3, 32, 32)
    assert example.min() < -1 < 1 < example.max()  # two standardised digits, black and white
    assert [path.name for path in saved.parent.iterdir()] == ["t1"]


def test_what_is_saved_stays(saved, checkpoint, digits):
    before = (saved / "MLmodel").stat().st_mtime_ns
    assert save_model(checkpoint, str(digits), saved) == saved
    assert (saved / "MLmodel").stat().st_mtime_ns == before


def deliver(tracking):
    delivery = Delivery(tracking.folder, tracking.uri)
    assert delivery.send()
    return delivery


def test_each_pick_is_a_version_once_and_the_alias_is_the_last(saved, tmp_path, digits, monkeypatch):
    tracking = start_sweep(f"sqlite:///{tmp_path}/mlflow.db", "s", {}, tmp_path / "runs")
    for trial in ("t1", "t2"):
        Spool(tracking.folder, trial).begin(trial, {}, {})
    tracking.log_model("t1", saved)
    deliver(tracking)
    tracking.log_model("t1", saved)  # the sweep was resumed
    gone = Path(shutil.copytree(saved, tmp_path / "gone"))
    deliver(tracking)
    client = MlflowClient(tracking.uri)
    (version,) = client.search_model_versions("name = 's'")
    assert version.run_id == tracking.run_of("t1")
    assert client.get_model_version_by_alias("s", "pick").version == version.version
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.uri)
    assert load_subject("models:/s@pick", str(digits), {}).trial.image_size == 32

    tracking.log_model("t2", gone)  # an extension found a better one
    shutil.rmtree(gone)
    Spool(tracking.folder, "t3").begin("t3", {}, {})
    assert "gone is gone" in deliver(tracking).refused["t2"]
    assert tracking.run_of("t3"), "others do not wait for it"
    assert client.get_model_version_by_alias("s", "pick").version == version.version
    shutil.copytree(saved, gone)
    assert not deliver(tracking).refused
    assert client.get_model_version_by_alias("s", "pick").run_id == tracking.run_of("t2")
    assert len(client.search_model_versions("name = 's'")) == 2
    assert len(client.search_logged_models([client.get_experiment_by_name("heatmap-sweeps").experiment_id])) == 2
