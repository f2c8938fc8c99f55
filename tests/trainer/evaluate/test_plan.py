"""What an evaluation costs."""

import dataclasses

import pytest

from trainer.evaluate import plan as plans


@pytest.mark.parametrize(("images", "examples", "attacked"), [
    (100, 500, 32),  # too short an epoch: the floors
    (10_000, 1500, 214), (2560, 768, 36), (1_000_000, 1500, 256),
])  # fmt: skip
def test_a_light_evaluation_costs_a_fifth_of_a_plain_epoch(trial, images, examples, attacked):
    trial = dataclasses.replace(trial, images_per_epoch=images, robust_images=256, pgd_steps=8)
    plan = plans.light(trial, total=1500)
    assert (plan.examples, plan.attacked) == (examples, attacked)
    if images > 1000:
        passes = plan.examples + plan.attacked * (plan.attacks[0].passes + 3)
        assert passes <= 0.2 * 3 * images
