"""The learning rate of each step against the original's."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from trainer.config import Trial
from trainer.fit import fit
from trainer.schedule import factor, learning_rate

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "lr_schedule.npz")
CASES = sorted({name.partition("/")[0] for name in GOLDEN})


@pytest.mark.parametrize("case", CASES)
def test_the_schedule_is_the_originals(case):
    total, batch, images, base = GOLDEN[f"{case}/config"]
    epochs = total / (images // batch)
    ours = [base * batch / 256 * factor(step / (images / batch), epochs) for step in GOLDEN[f"{case}/steps"].tolist()]
    np.testing.assert_allclose(ours, GOLDEN[f"{case}/lr"], rtol=1e-6)


def test_a_trials_schedule_is_that_of_its_batch_and_epochs():
    # The case's 9,000 steps are 23 epochs and 30 steps; all of its milestones are those of 23 epochs.
    _, batch, images, base = GOLDEN["cifar_like/config"]
    trial = Trial(
        model="resnet8", schedule="imagenet", learning_rate=float(base), epochs=23, images_per_epoch=int(images),
        batch_size=int(batch) // 4,
    )  # fmt: skip
    ours = [learning_rate(trial, step, world_size=4) for step in GOLDEN["cifar_like/steps"].tolist()]
    np.testing.assert_allclose(ours, GOLDEN["cifar_like/lr"], rtol=1e-6)
    constant = dataclasses.replace(trial, schedule="constant")
    assert {learning_rate(constant, step, world_size=4) for step in (0, 100, 8999)} == {float(base)}


def test_training_follows_it(digits):
    trial = Trial(
        data=str(digits), model="resnet8", schedule="imagenet", learning_rate=0.4, epochs=3, images_per_epoch=64,
        batch_size=32, robust_images=8, pgd_steps=1, clip_norm=None,
    )  # fmt: skip
    rates = []
    fit(trial, lambda report, state: rates.append([group["lr"] for group in state["optimizer"]["param_groups"]]))
    # 30, 60 and 80 of 90 epochs are 1, 2 and 2 of 3; 32 images have an eighth of the rate of 256.
    assert rates == [pytest.approx([rate, rate]) for rate in (0.05, 0.005, 0.00005)]
