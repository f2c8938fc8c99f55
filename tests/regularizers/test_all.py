"""One contract for every registered regularizer; a new file is covered with no edit here."""

import dataclasses
import inspect

import numpy as np
import pytest
import torch
from torch import nn

from regularizers import REGULARIZERS, Forward, HeatmapRegularizer

DESIGN = [
    "none",
    "datagrad",
    "spectreg",
    "l2",
    "tv",
    "tv_abs",
    "tv_abs_unscaled",
    "mse",
    "cor",
    "grad_diff",
    "sobel_edges",
    "psnr",
    "psnr_hvs",
    "ssim",
    "ssim_unfiltered",
    "psnr_hvs_dct",
    "psnr_hvs_m",
]


@pytest.fixture(params=sorted(REGULARIZERS))
def regularizer(request):
    return REGULARIZERS[request.param](weight=0.1)


def network():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.Softplus(), nn.Conv2d(4, 5, 3, 2), nn.Tanh(), nn.Flatten(), nn.LazyLinear(4)
    model = nn.Sequential(*layers).double()
    model(torch.zeros(1, 3, 16, 16, dtype=torch.float64))
    return model


def forward_pass(model, images, labels):
    images = images.clone().requires_grad_()
    return Forward(images, labels, model(images), torch.Generator().manual_seed(3))


def batch(n=4):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(n, 3, 16, 16, generator=generator, dtype=torch.float64)
    return images, torch.randint(4, (n,), generator=generator)


def test_every_name_of_the_design_is_there():
    assert set(DESIGN) == set(REGULARIZERS)


def test_is_a_frozen_dataclass_with_name_weight_range_and_source(regularizer):
    assert REGULARIZERS[regularizer.name] is type(regularizer)
    assert inspect.getmodule(type(regularizer)).__name__ == f"regularizers.{regularizer.name}"
    with pytest.raises(dataclasses.FrozenInstanceError):
        regularizer.weight = 1.0
    low, high = regularizer.strengths()
    assert (low, high) == (0, 0) if regularizer.name == "none" else 0 < low < high
    assert regularizer.name == "none" or "References:" in inspect.getdoc(type(regularizer))
    with pytest.raises(ValueError, match="weight=-1"):
        type(regularizer)(weight=-1.0)


def test_penalty_is_per_example_and_examples_do_not_touch_each_other(regularizer):
    model, (images, labels) = network(), batch()
    together = regularizer.penalty(forward_pass(model, images, labels))
    assert together.shape == (4,)
    assert together.isfinite().all()
    if regularizer.name == "spectreg":  # draws a projection per example, so an example alone sees another one
        return
    alone = torch.cat(
        [regularizer.penalty(forward_pass(model, images[i : i + 1], labels[i : i + 1])) for i in range(4)]
    )
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-12)


def test_second_order_gradient_equals_finite_differences(regularizer):
    model, (images, labels) = network(), batch(2)
    if not regularizer.needs_heatmap:
        assert not regularizer.penalty(forward_pass(model, images, labels)).requires_grad
        return
    weight = model[0].weight
    (gradient,) = torch.autograd.grad(regularizer.penalty(forward_pass(model, images, labels)).sum(), weight)
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    h, values = 1e-6, []
    for sign in (1, -1):
        with torch.no_grad():
            weight += sign * h * direction
        values.append(regularizer.penalty(forward_pass(model, images, labels)).sum().item())
        with torch.no_grad():
            weight -= sign * h * direction
    np.testing.assert_allclose((gradient * direction).sum().item(), (values[0] - values[1]) / (2 * h), rtol=2e-5)


@pytest.mark.parametrize("name", sorted(n for n, r in REGULARIZERS.items() if issubclass(r, HeatmapRegularizer)))
def test_degenerate_pairs_stay_finite(name):
    """Constant image, zero heatmap, identical pair, binary complement, in one batch with an ordinary pair."""
    regularizer = REGULARIZERS[name]()
    images, _ = batch(6)
    heatmaps = torch.randn(images.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    images[0], heatmaps[1], heatmaps[2] = 0.7, 0.0, images[2]
    images[3] = (images[3] > 0).double()
    heatmaps[3] = 1 - images[3]
    images[4, 0], heatmaps[4, 1] = 0.3, 0.0
    heatmaps.requires_grad_()
    losses = regularizer.distance(heatmaps, images)
    (gradient,) = torch.autograd.grad(losses.sum(), heatmaps)
    assert losses.isfinite().all()
    assert gradient.isfinite().all()
    ordinary = regularizer.distance(heatmaps[5:], images[5:])
    torch.testing.assert_close(losses[5:], ordinary, rtol=1e-12, atol=0)


def test_heatmap_of_a_linear_model_is_its_weight_row():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).double()
    images = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    forward = forward_pass(model, images, torch.tensor([2, 0]))
    rows = model[1].weight[[2, 0]].reshape(2, 3, 2, 2)
    torch.testing.assert_close(forward.heatmap(forward.class_logits), rows)
    torch.testing.assert_close(REGULARIZERS["l2"]().penalty(forward), rows.square().mean(dim=(1, 2, 3)))


def test_images_that_do_not_require_grad_are_refused():
    forward = Forward(torch.zeros(1, 3, 4, 4), torch.tensor([0]), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="requires_grad_"):
        forward.heatmap(forward.class_logits)
