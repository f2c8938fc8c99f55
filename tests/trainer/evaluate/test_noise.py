"""Image-dependent noise, against the numbers of the original TensorFlow code for the same draws."""

from pathlib import Path

import numpy as np
import pytest
import torch

from trainer.evaluate.noise import r_normal, r_uniform

GOLDEN = np.load(Path(__file__).parents[2] / "golden" / "noise.npz")
NAMES = [str(name) for name in GOLDEN["names"]]


def golden(key):
    return torch.from_numpy(GOLDEN[key]).permute(2, 0, 1).contiguous()


IMAGES = torch.stack([golden(f"image/{name}") for name in NAMES])
NORMAL, UNIFORM = (golden(f"unit_{kind}").expand_as(IMAGES) for kind in ("normal", "uniform"))


@pytest.mark.parametrize("multiple", GOLDEN["multiple_image_std"].tolist())
def test_normal_noise_equals_the_original(multiple):
    noisy = torch.stack([golden(f"r_normal/{name}/{multiple}/noisy") for name in NAMES])
    assert torch.equal(r_normal(IMAGES, NORMAL, multiple), noisy)
    std = torch.stack([torch.from_numpy(GOLDEN[f"r_normal/{name}/{multiple}/std"]) for name in NAMES])
    zero = torch.zeros_like(IMAGES)
    assert torch.equal(r_normal(IMAGES, zero + 1, multiple), IMAGES + std[:, :, None, None])


def test_uniform_noise_equals_the_original():
    noisy = torch.stack([golden(f"r_uniform/{name}/noisy") for name in NAMES])
    assert torch.equal(r_uniform(IMAGES, UNIFORM), noisy)
    for draw, bounds in ((0, 0), (1, 1)):
        expected = torch.stack([torch.from_numpy(GOLDEN[f"r_uniform/{name}/bounds"])[bounds] for name in NAMES])
        assert torch.equal(r_uniform(IMAGES, torch.full_like(IMAGES, draw)), IMAGES + expected[:, None, None, None])


@pytest.mark.parametrize("percentile", [0.0, 1.0, 10.0, 25.0, 50.0, 90.0, 100.0])
@pytest.mark.parametrize("side", [3, 5, 6, 7])
def test_percentile_is_numpys_by_nearest_rank(percentile, side):
    values = torch.randperm(3 * side * side, generator=torch.Generator().manual_seed(side)).double()
    image = values.view(1, 3, side, side)
    bound = float(r_uniform(image, torch.ones_like(image), percentile).sub(image).mean())
    exact = (values.numel() - 1) * percentile / 100
    assert abs(bound - exact) <= 0.5
    if exact % 1 != 0.5:
        assert bound == np.percentile(values.numpy(), percentile, method="nearest")


def test_a_broken_example_does_not_touch_the_others():
    images = IMAGES.clone()
    images[1] = float("nan")
    for function, unit, extra in ((r_normal, NORMAL, (0.15,)), (r_uniform, UNIFORM, ())):
        whole, broken = function(IMAGES, unit, *extra), function(images, unit, *extra)
        assert broken[1].isnan().all()
        assert torch.equal(broken[[0, 2, 3, 4]], whole[[0, 2, 3, 4]])
