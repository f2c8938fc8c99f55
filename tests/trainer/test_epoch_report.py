"""What is reported of an epoch, and what of it goes through Ray."""

import math

import pytest

from trainer.epoch_report import EpochReport
from trainer.metrics import TRAIN_LOSS, VAL_ACCURACY, VAL_ROBUST_ACCURACY


@pytest.fixture
def report():
    metrics = {TRAIN_LOSS: 2.5, VAL_ACCURACY: 0.5, VAL_ROBUST_ACCURACY: math.nan, "val/heatmap_tv": 0.1}
    outcomes = {"val": "0110", "test": "1"}
    return EpochReport(epoch=2, step=8, images_seen=128, diverged=False, metrics=metrics, withstood=outcomes)


def test_a_report_comes_back_from_its_dictionary(report):
    flat = report.to_dict()
    assert flat.keys() == {*report.metrics, "epoch", "step", "images_seen", "diverged", "withstood"}
    assert EpochReport.from_dict(flat) == report
    assert flat.pop("withstood") == {"val": "0110", "test": "1"}
    assert all(type(value) is float for value in flat.values())
    assert EpochReport.from_dict(flat).withstood == {}, "of a checkpoint of an earlier version"


def test_ray_takes_the_small_part_and_finite_numbers(report):
    told = report.for_ray("digest", "trials/1/epoch_0002")
    assert told == {
        "epoch": 2.0, "step": 8.0, "images_seen": 128.0, "diverged": 0.0, VAL_ACCURACY: 0.5, VAL_ROBUST_ACCURACY: 0.0,
        "digest": "digest", "checkpoint_folder": "trials/1/epoch_0002",
    }  # fmt: skip
    assert "checkpoint_folder" not in report.for_ray("digest", None)


@pytest.mark.parametrize(("epochs", "diverged", "last"), [(2, False, True), (3, False, False), (3, True, True)])
def test_the_last_epoch_is_the_wanted_one_or_one_that_diverged(epochs, diverged, last):
    report = EpochReport(epoch=2, step=8, images_seen=128, diverged=diverged, metrics={})
    assert report.is_last(epochs) == last
