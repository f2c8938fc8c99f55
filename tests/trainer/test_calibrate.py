"""Calibration of the weights: broken images, wrong regularizers, penalties without a heatmap."""

import math
from dataclasses import dataclass

import pytest
import torch

from regularizers import REGULARIZERS, Regularizer
from regularizers.base import tunable
from trainer.cache import ShardCache
from trainer.calibrate import calibrate
from trainer.config import Trial, UsageError
from trainer.preprocess import DecodeError, Transform


@pytest.fixture
def trial(digits):
    return Trial(
        data=str(digits), model="resnet8", regularizer="l2", weight=0.1, epochs=2, images_per_epoch=64, batch_size=16,
        robust_images=16, pgd_steps=1, activation="softplus", augment=False,
    )  # fmt: skip


@pytest.fixture
def one_broken(monkeypatch):
    """The image that is read first: one of 1,258, and of the few of an epoch."""
    decode, bad = Transform.__call__, []

    def broken(self, encoded, randomness):
        bad.append(encoded)
        if encoded == bad[0]:
            raise DecodeError("cut off")
        return decode(self, encoded, randomness)

    monkeypatch.setattr(Transform, "__call__", broken)


def test_calibration_leaves_broken_images_out(trial, one_broken):
    units = calibrate(trial, ["l2", "psnr"], torch.device("cpu"), ShardCache())
    assert all(math.isfinite(unit) and unit > 0 for unit in units.values())


def test_calibration_on_broken_images_says_so(trial, monkeypatch):
    def broken(self, encoded, randomness):
        raise DecodeError("cut off")

    monkeypatch.setattr(Transform, "__call__", broken)
    with pytest.raises(UsageError, match=r"image digit_\d+ cannot be decoded \(cut off\)"):
        calibrate(trial, ["l2"], torch.device("cpu"), ShardCache())


@dataclass(frozen=True, kw_only=True)
class Scalar(Regularizer):
    name = "scalar"
    weight: float = tunable(0.5, 0.1, 1000.0)

    def formula(self, heatmap, images):
        return heatmap.square().mean()


def test_a_wrong_regularizer_ends_the_calibration_by_its_name(trial, monkeypatch):
    monkeypatch.setitem(REGULARIZERS, "scalar", Scalar)
    with pytest.raises(UsageError, match="regularizer 'scalar': formula returned shape .*not over the batch"):
        calibrate(trial, ["none", "l2", "scalar"], torch.device("cpu"), ShardCache())


@dataclass(frozen=True, kw_only=True)
class Entropy(Regularizer):
    """Of the output; looks at no heatmap."""

    name = "entropy"
    needs_heatmap = False
    weight: float = tunable(0.5, 0.1, 1000.0)

    def penalty(self, forward):
        return -(forward.logits.softmax(dim=1) * forward.logits.log_softmax(dim=1)).sum(dim=1)


def test_a_penalty_without_a_heatmap_is_calibrated_too(trial, monkeypatch):
    monkeypatch.setitem(REGULARIZERS, "entropy", Entropy)
    units = calibrate(trial, ["none", "entropy"], torch.device("cpu"), ShardCache())
    assert units.keys() == {"entropy"}
    assert units["entropy"] > 0
