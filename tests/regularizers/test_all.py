"""One contract for every registered regularizer; a new file is covered with no edit here."""

import dataclasses
import inspect
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from regularizers import REGULARIZERS, Forward

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
SMALLEST = {"ssim": 11, "ssim_unfiltered": 8, "psnr_hvs": 8, "psnr_hvs_dct": 8, "psnr_hvs_m": 8, "sobel_edges": 2}


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
    with pytest.raises(ValueError, match="weight=-1"):
        type(regularizer)(weight=-1.0)


def test_documentation_says_formula_pull_and_source(regularizer):
    text = inspect.getdoc(type(regularizer))
    assert "distance = " in text
    assert "Pulls " in text
    assert "References:" in text


def test_the_list_names_every_regularizer_with_its_range():
    listed = subprocess.run([sys.executable, "-m", "regularizers"], capture_output=True, text=True, check=True).stdout
    for name, regularizer in REGULARIZERS.items():
        low, high = regularizer.strengths()
        assert f"\n{name}  (weight {low:g} to {high:g} units" in "\n" + listed
        assert inspect.getdoc(regularizer).splitlines()[0] in listed


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


def picture(draw, shape, kind):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    if kind == "constant":
        values = torch.full(shape, draw(st.floats(-2, 2)), dtype=torch.float64)
    elif kind == "binary":
        values = torch.randint(2, shape, generator=generator).double()
    elif kind == "spike":
        values = torch.zeros(shape, dtype=torch.float64)
        values[:, 0, 0, 0] = 1.0
    else:
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        if kind == "flat channel":
            values[:, 0] = 0.5
    return values * 10.0 ** draw(st.integers(-30, 30))


KINDS = ["ordinary", "constant", "binary", "spike", "flat channel"]


@st.composite
def pairs(draw):
    """Heatmap and image of one shape: degenerate or not, equal or not, at scales from 1e-30 to 1e30."""
    shape = (
        draw(st.integers(1, 3)),
        draw(st.sampled_from([1, 3, 4])),
        draw(st.integers(1, 20)),
        draw(st.integers(1, 20)),
    )
    dtype = draw(st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
    images = picture(draw, shape, draw(st.sampled_from(KINDS)))
    kind = draw(st.sampled_from([*KINDS, "equal", "complement"]))
    heatmaps = images.clone() if kind == "equal" else 1 - images if kind == "complement" else picture(draw, shape, kind)
    return heatmaps.to(dtype), images.to(dtype)


@pytest.mark.parametrize("name", sorted(REGULARIZERS))
@given(pair=pairs())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_value_and_gradient_are_finite_or_the_size_is_refused(name, pair):
    heatmaps, images = pair
    heatmaps.requires_grad_()
    smallest = SMALLEST.get(name, 1)
    if min(images.shape[2:]) < smallest:
        with pytest.raises(ValueError, match=f"at least {smallest}x{smallest} pixels"):
            REGULARIZERS[name]().distance(heatmaps, images)
        return
    losses = REGULARIZERS[name]().distance(heatmaps, images)
    assert losses.shape == images.shape[:1]
    assert losses.dtype == (torch.float64 if images.dtype == torch.float64 else torch.float32)
    assert losses.isfinite().all()
    if losses.requires_grad:
        assert torch.autograd.grad(losses.sum(), heatmaps)[0].isfinite().all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["heatmap", "image"])
def test_a_bad_example_changes_no_bit_of_the_others(regularizer, where, bad):
    generator = torch.Generator().manual_seed(0)
    heatmaps, images = torch.randn(2, 4, 3, 16, 16, generator=generator)

    def run(spoil):
        ours, theirs = heatmaps.clone(), images.clone()
        if spoil:
            (ours if where == "heatmap" else theirs)[1, 2, 3, 4] = bad
        losses = regularizer.distance(ours.requires_grad_(), theirs)
        gradient = torch.autograd.grad(losses.sum(), ours)[0] if losses.requires_grad else torch.zeros_like(ours)
        return losses.detach(), gradient

    (clean, clean_gradient), (losses, gradient) = run(False), run(True)
    others = [0, 2, 3]
    assert torch.equal(losses[others], clean[others])
    assert torch.equal(gradient[others], clean_gradient[others])
    assert losses[1] == 0
    assert not gradient[1].any()


def test_images_that_do_not_require_grad_are_refused():
    forward = Forward(torch.zeros(1, 3, 4, 4), torch.tensor([0]), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="requires_grad_"):
        forward.heatmap(forward.class_logits)
