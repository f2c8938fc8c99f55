"""A trial to evaluate."""

import pytest

from trainer.config import Trial


@pytest.fixture
def trial(digits):
    return Trial(data=str(digits), model="resnet8", batch_size=50, robust_images=60, pgd_eps=0.2 / 255, pgd_steps=3)
