"""Settings of a trial that cannot be together."""

import dataclasses

import pytest

from trainer.config import Trial, UsageError


@pytest.fixture
def trial(digits):
    return Trial(
        data=str(digits), model="resnet8", regularizer="l2", weight=0.1, epochs=2, images_per_epoch=64, batch_size=16,
        robust_images=16, pgd_steps=1, activation="softplus", augment=False,
    )  # fmt: skip


def test_compile_refuses_batch_statistics(trial):
    with pytest.raises(UsageError, match="^compile=yes: needs batch_norm frozen, not stop"):
        dataclasses.replace(trial, compile=True, batch_norm="stop")
