"""Calibration of the weights: broken images, wrong regularizers, penalties without a heatmap."""

import math
from dataclasses import dataclass

import pytest
import torch

from regularizers import REGULARIZERS, Regularizer
from regularizers.base import tunable
from trainer.cache import ShardCache
from trainer.calibrate import calibrate
from trainer.config import UsageError
from trainer.preprocess import DecodeError, Transform


def test_calibration_leaves_broken_images_out(trial, one_broken):
    units = calibrate(trial, ["l2", "psnr"], torch.device("cpu"), ShardCache())
    assert all(math.isfinite(unit) and unit > 0 for unit in units.values())


def test_calibration_on_broken_images_says_so(trial, monkeypatch):
    def broken(self, encoded, randomness):
        raise DecodeError("cut off")

    monkeypatch.setattr(Transform, "__call__", broken)
    with pytest.raises(UsageError, match=r"image digit_\d+ cannot be decoded \(cut off\)"):
        calibrate(trial, ["l2"], torch.device("cpu"), ShardCache())


def test_a_wrong_regularizer_ends_the_calibration_by_its_name(trial, scalar):
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
