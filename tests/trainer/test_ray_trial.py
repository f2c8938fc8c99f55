"""What a worker of a trial writes and reports; Ray Train is replaced by what it would answer."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from ray_train import train_worker

from trainer import ray_trial, system_metrics
from trainer.config import Trial, UsageError
from trainer.evaluate import gallery
from trainer.trial_log import read_points, read_report


@pytest.fixture
def worker(tmp_path, digits, monkeypatch):
    """Run a worker; its reports, and the checkpoint it is told to continue from."""
    trial = Trial(data=str(digits), model="resnet8", epochs=2, images_per_epoch=48, batch_size=16, robust_images=8)

    def run(checkpoint=None):
        return train_worker(monkeypatch, trial, run.folder, checkpoint)

    run.folder = tmp_path / "trial"
    return run


def test_a_trial_that_had_ended_reports_its_end_again_and_trains_no_further(worker, monkeypatch):
    reports = worker()
    assert [report["epoch"] for report in reports] == [1.0, 2.0]
    assert Path(reports[-1]["checkpoint_folder"]).name == "epoch_0002"
    (worker.folder / "reports/epoch_0002.json").unlink()  # storage had not taken it
    monkeypatch.setattr(ray_trial, "fit", lambda *rest: 1 / 0)
    assert worker(reports[-1]["checkpoint_folder"]) == reports[-1:]
    assert read_report(str(worker.folder), 2)["metrics"]["val/accuracy"] == reports[-1]["val/accuracy"]


@pytest.mark.parametrize(("error", "noted"), [(UsageError("no such layer"), True), (ConnectionError("away"), False)])
def test_a_non_retryable_error_is_noted_and_then_reported_without_training(worker, monkeypatch, error, noted):
    def fit(*rest):
        raise error

    monkeypatch.setattr(ray_trial, "fit", fit)
    with pytest.raises(type(error)):
        worker()
    assert (worker.folder / "failure.json").exists() == noted
    if noted:
        assert json.loads((worker.folder / "failure.json").read_text())["reason"] == "no such layer"
        (report,) = worker()
        assert (report["failed"], report["val/robust_accuracy"]) == ("no such layer", 0.0)


def test_a_checkpoint_that_cannot_be_written_ends_no_training(worker, monkeypatch, caplog):
    def refuse(state, folder):
        raise UsageError(f"cannot write {folder}: No space left on device")

    monkeypatch.setattr(ray_trial, "save_state", refuse)
    reports = worker()
    assert [report["epoch"] for report in reports] == [1.0, 2.0]
    assert all("checkpoint_folder" not in report for report in reports)
    assert caplog.text.count("training continues") == 2


def test_a_trial_leaves_pictures_of_its_heatmaps_and_the_load_of_its_machine(worker, monkeypatch, caplog):
    monkeypatch.setattr(system_metrics, "FIRST", 0.01)
    reports = worker()
    with Image.open(worker.folder / "gallery.png") as picture:
        assert picture.format == "PNG"
        assert picture.height > picture.width  # four images below each other
    points = [point["metrics"] for epoch in (1, 2) for point in read_points(str(worker.folder), epoch)]
    busy = [metrics for metrics in points if "system/cpu_utilization_percentage" in metrics]
    assert 0 < busy[0]["system/system_memory_usage_percentage"] < 100
    assert busy[0]["system/system_memory_usage_megabytes"] > 10

    monkeypatch.setattr(gallery, "draw_gallery", lambda *rest: 1 / 0)
    shutil.rmtree(worker.folder)
    again = worker()
    assert not (worker.folder / "gallery.png").exists()
    assert "no gallery: ZeroDivisionError" in caplog.text
    assert again[-1]["epoch"] == reports[-1]["epoch"]
