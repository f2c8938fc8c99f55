"""One trial without Ray."""

import dataclasses

import pytest
import torch

import trainer.data
from trainer.config import Trial, UsageError
from trainer.fit import fit


@pytest.fixture
def trial(digits):
    return Trial(
        data=str(digits), model="resnet8", regularizer="l2", weight=0.1, epochs=2, images_per_epoch=64, batch_size=16,
        robust_images=16, pgd_steps=1, activation="softplus",
    )  # fmt: skip


def run(trial, state=None):
    reports, points = [], []
    fit(trial, lambda metrics, state: reports.append((metrics, state)), lambda m, step: points.append((step, m)), state)
    return reports, points


@pytest.mark.parametrize("mode", ["frozen", "stop", "flow"])
def test_a_continued_trial_equals_an_uninterrupted_one(trial, mode):
    trial = dataclasses.replace(trial, batch_norm=mode)
    whole, points = run(trial)
    ((_, state),) = run(dataclasses.replace(trial, epochs=1))[0]
    ((second, last),), again = run(trial, state)
    assert [step for step, _ in points] == list(range(1, 9))
    assert points[4:] == again
    for name, value in whole[-1][1]["model"].items():
        assert torch.equal(value, last["model"][name]), name
    assert second["val/accuracy"] == whole[-1][0]["val/accuracy"]


def test_bad_images_are_counted(trial, monkeypatch):
    standardise = trainer.data.standardise

    def spoil(pixels):
        images = standardise(pixels)
        images[0, 0, 0, 0] = float("nan")
        return images

    assert run(trial)[0][0][0]["train/nonfinite_examples"] == 0
    monkeypatch.setattr(trainer.data, "standardise", spoil)
    metrics = run(trial)[0][0][0]
    assert metrics["train/nonfinite_examples"] == 4
    assert not metrics["diverged"]


def test_a_trial_that_diverges_ends_with_the_worst_score(trial):
    ((metrics, _),) = run(dataclasses.replace(trial, learning_rate=1e30, clip_norm=1e30))[0]
    assert metrics["diverged"]
    assert metrics["val/robust_accuracy"] == 0


def test_compile_refuses_batch_statistics(trial):
    with pytest.raises(UsageError, match="compile needs batch_norm 'frozen'"):
        dataclasses.replace(trial, compile=True, batch_norm="stop")
