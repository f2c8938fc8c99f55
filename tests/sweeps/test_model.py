"""The winner as a model in MLflow's registry; that it serves is seen in test_browser.py."""

import shutil
from pathlib import Path

import mlflow
import pytest
import torch
from mlflow import MlflowClient
from recorded import begin, run_of, start

from sweeps.events import ModelSaved
from sweeps.tracking import upload
from sweeps.tracking.cursor import SWEEP
from sweeps.tracking.model import save_model
from trainer.config import Trial, UsageError
from trainer.evaluate.classify import classifier
from trainer.evaluate.heatmaps import heatmap
from trainer.evaluate.subject import load_subject
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
    assert example.min() < -1 < 1 < example.max()  # two normalized digits, black and white
    assert [path.name for path in saved.parent.iterdir()] == ["t1"]


def test_a_saved_model_says_how_it_is_fed_and_takes_any_number_of_images(digits, tmp_path, recording, monkeypatch):
    half, uneven = (0.5, 0.5, 0.5), (0.25, 0.5, 1.0)
    trial = Trial(data=str(digits), model="timm:test_efficientnet", image_size=64, mean=half, std=uneven)
    torch.manual_seed(1)
    model = build_model(trial.model, 10).eval()
    torch.save({"model": model.state_dict(), "trial": trial.to_dict()}, tmp_path / "state.pt")
    saved = save_model(str(tmp_path / "state.pt"), str(digits), tmp_path / "saved")
    loaded, served = mlflow.pytorch.load_model(str(saved)), mlflow.pyfunc.load_model(str(saved))
    for count in (1, 2, 3, 7):
        images = torch.randn(count, 3, 64, 64)
        with torch.no_grad():
            expected = model(images)
        torch.testing.assert_close(loaded(images), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(torch.tensor(served.predict(images.numpy())), expected, rtol=1e-4, atol=1e-5)

    metadata = served.metadata.metadata
    assert metadata == {
        "mean": list(half), "std": list(uneven), "image_size": 64, "classes": [str(digit) for digit in range(10)],
        "regularizer": "none",
    }  # fmt: skip
    # The example is made by what the metadata say.
    black = [-mean / std for mean, std in zip(metadata["mean"], metadata["std"], strict=True)]
    example = torch.tensor(served.input_example)
    assert example.shape[2:] == 2 * (metadata["image_size"],)
    torch.testing.assert_close(example.amin((0, 2, 3)), torch.tensor(black), rtol=1e-5, atol=1e-6)

    recording.append(ModelSaved(trial_id="t1", folder=str(saved)))
    deliver(recording)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", recording.sweep.tracking_uri)
    found = load_subject("models:/cifar-v1.2@pick", str(digits), {}).trial
    assert (found.mean, found.std, found.image_size) == (half, uneven, 64)


def test_what_is_saved_stays(saved, checkpoint, digits):
    before = (saved / "MLmodel").stat().st_mtime_ns
    assert save_model(checkpoint, str(digits), saved) == saved
    assert (saved / "MLmodel").stat().st_mtime_ns == before


def deliver(recording):
    uploader = recording.uploader()
    assert uploader.send()
    return uploader


@pytest.fixture
def recording(tmp_path):
    """Of a sweep with three trials that MLflow does not have yet."""
    recording = start(tmp_path / "runs", f"sqlite:///{tmp_path}/mlflow.db", "cifar-v1.2")
    for trial in ("t1", "t2", "t3"):
        begin(recording, trial, trial)
    return recording


def versions(client):
    return client.search_model_versions("name = 'cifar-v1.2'")


def picked(client):
    return client.get_model_version_by_alias("cifar-v1.2", "pick").run_id


def test_each_pick_is_a_version_once_and_the_alias_is_the_last(saved, recording, tmp_path, digits, monkeypatch):
    recording.append(ModelSaved(trial_id="t1", folder=str(saved)))
    assert not deliver(recording).refused
    recording.append(ModelSaved(trial_id="t1", folder=str(saved)))  # the sweep was resumed
    deliver(recording)
    client = MlflowClient(recording.sweep.tracking_uri)
    (version,) = versions(client)
    assert version.run_id == picked(client) == run_of(recording, "t1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", recording.sweep.tracking_uri)
    assert load_subject("models:/cifar-v1.2@pick", str(digits), {}).trial.image_size == 32

    gone = Path(shutil.copytree(saved, tmp_path / "gone"))
    recording.append(ModelSaved(trial_id="t2", folder=str(gone)))  # an extension found a better one
    shutil.rmtree(gone)
    begin(recording, "t4", "t4")
    recording.result_written({"best/val/accuracy": 0.5}, "text", ())
    assert "gone is gone" in deliver(recording).refused["cifar-v1.2"]
    assert "lacks 0 values and 1 events" in recording.queued()
    assert run_of(recording, "t4"), "others do not wait for it"
    parent = client.get_run(run_of(recording))
    assert parent.data.metrics == {"best/val/accuracy": 0.5}, "nor what the sweep has to say after it"
    assert picked(client) == run_of(recording, "t1")
    shutil.copytree(saved, gone)
    assert not deliver(recording).refused
    assert recording.queued() == ""
    assert picked(client) == run_of(recording, "t2")
    assert len(versions(client)) == 2
    assert len(client.search_logged_models([parent.info.experiment_id])) == 2


def test_the_last_pick_is_the_pick_though_nothing_was_heard_before(saved, recording):
    for trial in ("t3", "t1"):  # before their runs are known, and not in the order of their names
        recording.append(ModelSaved(trial_id=trial, folder=str(saved)))
    assert not deliver(recording).refused
    client = MlflowClient(recording.sweep.tracking_uri)
    assert picked(client) == run_of(recording, "t1")
    assert {version.run_id for version in versions(client)} == {run_of(recording, "t1"), run_of(recording, "t3")}


def test_a_registration_that_was_cut_off_is_gone_on_with(saved, recording, monkeypatch):
    def cut(*rest, **more):
        raise ConnectionError

    recording.append(ModelSaved(trial_id="t1", folder=str(saved)))
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "create_model_version", cut)
        assert "ConnectionError" in deliver(recording).refused["cifar-v1.2"]
    assert not deliver(recording).refused
    client = MlflowClient(recording.sweep.tracking_uri)
    assert picked(client) == run_of(recording, "t1")
    assert len(client.search_logged_models([client.get_run(run_of(recording, "t1")).info.experiment_id])) == 1


def test_a_registered_model_of_another_origin_stays_as_it_is(saved, recording):
    client = MlflowClient(recording.sweep.tracking_uri)
    client.create_registered_model("cifar-v1.2")
    recording.append(ModelSaved(trial_id="t1", folder=str(saved)))
    assert "another origin" in deliver(recording).refused["cifar-v1.2"]
    assert not versions(client)


def test_a_server_that_goes_away_while_a_model_is_sent_is_not_blamed_for_refusing_it(saved, recording, monkeypatch):
    def cut(*rest, **more):
        raise ConnectionError

    deliver(recording)
    recording.append(ModelSaved(trial_id="t1", folder=str(saved)))
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "create_model_version", cut)
        patch.setattr(upload, "_answers", lambda client: False)
        with pytest.raises(ConnectionError):
            deliver(recording)
    assert recording.uploader().cursors.read(SWEEP).refused == ()
    deliver(recording)
    assert picked(MlflowClient(recording.sweep.tracking_uri)) == run_of(recording, "t1")


def test_a_model_is_looked_for_where_sweeps_record_and_no_database_is_made(saved, digits, tmp_path, monkeypatch):
    recording = start(tmp_path / "runs", f"sqlite:///{tmp_path}/runs/mlflow.db", "s")
    begin(recording, "t1", "t1")
    recording.append(ModelSaved(trial_id="t1", folder=str(saved)))
    deliver(recording)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "elsewhere").mkdir()
    try:
        mlflow.set_tracking_uri(None)
        monkeypatch.chdir(tmp_path / "elsewhere")
        with pytest.raises(UsageError, match="no database is there.*set MLFLOW_TRACKING_URI"):
            load_subject("models:/s@pick", str(digits), {})
        assert list(Path().iterdir()) == []
        monkeypatch.chdir(tmp_path)
        assert load_subject("models:/s@pick", str(digits), {}).trial.image_size == 32
    finally:
        mlflow.set_tracking_uri(None)
