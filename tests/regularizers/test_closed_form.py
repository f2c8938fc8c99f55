"""Every regularizer on a linear model or a constructed pair whose value follows by hand."""

import math

import pytest
import torch
from torch import nn

from regularizers import REGULARIZERS, Forward
from regularizers.functional import C1

SIDE = 16
ROWS = torch.arange(SIDE, dtype=torch.float64).reshape(1, 1, SIDE, 1).expand(1, 3, SIDE, SIDE)
RAMP = ROWS / (SIDE - 1)  # 0 to 1, one slope
SLOPE = 1 / (SIDE - 1)
HALVES = (torch.arange(SIDE) >= SIDE // 2).double().expand(1, 3, SIDE, SIDE)  # 0 left, 1 right


def flip_block(images):
    """The upper left 8x8 block of a black-and-white picture inverted: a quarter of its pixels."""
    images = images.clone()
    images[..., :8, :8] = 1 - images[..., :8, :8]
    return images


def planes(*levels):
    return torch.tensor(levels, dtype=torch.float64).reshape(1, -1, 1, 1).expand(1, len(levels), SIDE, SIDE)


def brightness(x, y):
    return (2 * x * y + C1) / (x**2 + y**2 + C1)


CHECKERS = (torch.arange(SIDE)[:, None] + torch.arange(SIDE)).remainder(2).double().expand(1, 3, SIDE, SIDE)
VISIBLE_MEAN = 25.73509 / 16  # of a block's mean, by the JPEG luminance table
PAIRS = {
    "none": (RAMP, HALVES, 0.0),
    "l2": (3 * HALVES, RAMP, 9 / 2),
    "datagrad": (3 * HALVES, RAMP, 9 / 2),
    "spectreg": (3 * HALVES, RAMP, 9 / 2),
    "tv": (-2 * ROWS, RAMP, 3 * SIDE * (SIDE - 1) * 2),
    "tv_abs_unscaled": (ROWS * (1 - 2 * CHECKERS), RAMP, SIDE * (SIDE - 1) * 3),
    "tv_abs": (ROWS, 4 * HALVES, 3 * SIDE * (SIDE - 1) * 3 / 2),  # 4·HALVES deviates by 2 in each channel
    "mse": (5 * flip_block(HALVES) - 1, HALVES, 1 / 4),
    "psnr": (flip_block(HALVES), 2 * HALVES, 1 / (10 * math.log10(4))),
    "cor": (2 * HALVES - CHECKERS, 7 * HALVES + 1, 1 - 4 / 5),  # two uncorrelated patterns of equal variance
    "grad_diff": (RAMP, RAMP.mT, math.sqrt(3 * 2 * SIDE * (SIDE - 1) * SLOPE**2)),
    "sobel_edges": (RAMP, RAMP.mT, 3 * 2 * SIDE * (SIDE - 2) * (8 * SLOPE) ** 2),
    "psnr_hvs_dct": (flip_block(HALVES), HALVES, 1 / (-10 * math.log10(round(VISIBLE_MEAN, 6) ** 2 / 4))),
    "psnr_hvs_m": (flip_block(HALVES), HALVES, 1 / (-10 * math.log10(round(VISIBLE_MEAN, 6) ** 2 / 4))),
    # Error 2·variance of 16 rows, structure (two of four blocks 8 slopes apart), edges as below: a third of each.
    "psnr_hvs": (
        RAMP,
        RAMP.mT,
        1 / (-10 * math.log10((85 / 2 + 64 / 2 + 4 * (SIDE - 2) * 4 / SIDE**2) / 3 * SLOPE**2)),
    ),
    "ssim": (planes(0, 1, 0.5), planes(1, 0, 0.5), -(brightness(0, 1) * 2 + 1) / 3),
    "ssim_unfiltered": (1 - HALVES, HALVES, -brightness(0, 1)),
}


def test_every_shipped_regularizer_has_a_pair(shipped):
    assert set(shipped) <= set(PAIRS)


@pytest.mark.parametrize("name", sorted(PAIRS))
def test_constructed_pair(name):
    heatmap, image, expected = PAIRS[name]
    found = REGULARIZERS[name]().distance(heatmap, image).item()
    torch.testing.assert_close(found, float(expected), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize(
    ("part", "heatmap", "image", "error"),
    [
        ("error", flip_block(HALVES), HALVES, 1 / 4),
        ("structure", flip_block(HALVES), HALVES, (1 / 2 + 1 / 4 + 1 / 4) / 4),
        # The edge strength of a ramp is 2·slope but for the two borders across it, where it is 0.
        ("edge", RAMP, RAMP.mT, 4 * (SIDE - 2) * (2 * SLOPE) ** 2 / SIDE**2),
    ],
)
def test_psnr_hvs_part_by_part(part, heatmap, image, error):
    parts = {"error": 0.0, "structure": 0.0, "edge": 0.0} | {part: 1.0}
    value = REGULARIZERS["psnr_hvs"](**parts).distance(heatmap, image).item()
    assert value == pytest.approx(1 / (-10 * math.log10(error)), rel=1e-9)


@pytest.fixture
def linear():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).double()
    images = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    return model[1].weight, Forward(images, torch.tensor([2, 0]), model(images), torch.Generator().manual_seed(7))


def test_logit_of_a_linear_model(linear):
    rows, forward = linear
    torch.testing.assert_close(forward.heatmap(forward.class_logits).flatten(1), rows[[2, 0]])
    torch.testing.assert_close(REGULARIZERS["l2"]().penalty(forward), rows[[2, 0]].square().mean(dim=1))


def test_loss_of_a_linear_model(linear):
    rows, forward = linear
    residual = forward.logits.softmax(dim=1) - nn.functional.one_hot(forward.labels, 3)
    torch.testing.assert_close(REGULARIZERS["datagrad"]().penalty(forward), (residual @ rows).square().mean(dim=1))


def test_projection_of_a_linear_model(linear):
    rows, forward = linear
    projection = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(REGULARIZERS["spectreg"]().penalty(forward), (projection @ rows).square().mean(dim=1))
