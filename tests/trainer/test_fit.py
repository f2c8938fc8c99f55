"""One trial without Ray."""

import dataclasses
import io
import itertools
import math

import pytest
import torch

from trainer.config import UsageError
from trainer.fit import fit
from trainer.preprocess import DecodeError, Transform


def run(trial, state=None):
    reports, points = [], []
    fit(
        trial, lambda report, state: reports.append((report.to_dict(), state)),
        lambda losses, step: points.append((step, losses)), state,
    )  # fmt: skip
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


def test_a_state_names_the_classes_of_its_outputs(trial):
    ((_, state),) = run(dataclasses.replace(trial, epochs=1))[0]
    assert state["classes"] == [str(digit) for digit in range(10)]


@pytest.mark.parametrize("after", [1, 3, 6])
def test_a_trial_interrupted_within_an_epoch_goes_on_as_if_nothing_had_been(trial, after):
    trial = dataclasses.replace(trial, regularizer="spectreg", augment=True)
    whole, points = run(trial)
    asked = iter(range(100))
    reports, before = [], []
    state = fit(
        trial, lambda report, state: reports.append(report), lambda losses, step: before.append((step, losses)),
        interrupted=lambda: next(asked) == after - 1,
    )  # fmt: skip
    path = io.BytesIO()
    torch.save(state, path)
    path.seek(0)
    again, later = run(trial, torch.load(path, weights_only=True))
    assert [p for p in points if "step/loss" in p[1]] == [p for p in before + later if "step/loss" in p[1]]
    for name, value in whole[-1][1]["model"].items():
        assert torch.equal(value, again[-1][1]["model"][name]), name
    assert again[-1][0]["train/loss"] == whole[-1][0]["train/loss"]


@pytest.fixture
def one_broken_of_sixteen(monkeypatch):
    decode, calls = Transform.__call__, itertools.count()

    def broken(self, encoded, randomness):
        if self.train is False and next(calls) % 16 == 5:
            raise DecodeError("cut off")
        return decode(self, encoded, randomness)

    monkeypatch.setattr(Transform, "__call__", broken)


def test_broken_images_are_counted_and_left_out(trial, monkeypatch, one_broken_of_sixteen):
    monkeypatch.setattr("trainer.broken_images.MAX_BROKEN", 0.5)
    for (metrics, _), examples in zip(run(trial)[0], (32, 359), strict=True):  # after an epoch, and at the end
        assert metrics["train/nonfinite_examples"] == 4
        assert metrics["val/broken_examples"] == pytest.approx(examples / 16, abs=1)
        assert metrics["val/broken_examples"] + metrics["val/examples"] == examples
        assert not metrics["diverged"]


def test_too_many_broken_images_end_the_trial(trial, one_broken_of_sixteen):
    with pytest.raises(UsageError, match=r"train-0000\d\d.tar: image digit_\d+ cannot be decoded \(cut off\)"):
        run(dataclasses.replace(trial, augment=False))


def test_one_broken_image_of_many_is_left_out_of_a_small_epoch(trial, one_broken):
    metrics, _ = run(trial)[0][0]
    assert metrics["train/nonfinite_examples"] == 1
    assert math.isfinite(metrics["train/loss"])


def test_images_of_several_sizes_need_an_image_size(trial, monkeypatch):
    decode, sizes = Transform.__call__, itertools.cycle([0, 1])
    monkeypatch.setattr(Transform, "__call__", lambda self, *a: decode(self, *a)[:, next(sizes) :])
    with pytest.raises(UsageError, match="as image_size"):
        run(trial)


def test_a_trial_that_diverges_ends_with_the_worst_score(trial):
    ((metrics, _),) = run(dataclasses.replace(trial, learning_rate=1e30, clip_norm=1e30))[0]
    assert metrics["diverged"]
    assert metrics["val/robust_accuracy"] == 0


def test_a_wrong_regularizer_ends_a_trial_by_its_name(trial, scalar):
    wrong = dataclasses.replace(trial, regularizer="scalar")
    for each in (wrong, dataclasses.replace(wrong, compile=True)):
        with pytest.raises(UsageError, match="regularizer 'scalar': formula returned shape .*not over the batch"):
            run(each)
