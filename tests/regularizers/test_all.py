"""One contract for every registered regularizer; a new file is covered with no edit here."""

import dataclasses
import inspect
import random
import subprocess
import sys

import pytest
import torch

from regularizers import REGULARIZERS, Forward
from regularizers import _commands as command
from regularizers._check import CHECKS, NotApplicable
from regularizers._samples import smallest_side

SMALLEST = {"ssim": 11, "ssim_unfiltered": 8, "psnr_hvs": 8, "psnr_hvs_dct": 8, "psnr_hvs_m": 8, "sobel_edges": 2}


@pytest.fixture(params=sorted(REGULARIZERS))
def regularizer(request):
    return REGULARIZERS[request.param](weight=0.1)


def test_every_shipped_name_is_there(shipped):
    assert set(shipped) <= set(REGULARIZERS)


@pytest.mark.parametrize("check", CHECKS)
def test_holds(regularizer, check, shipped):
    try:
        CHECKS[check](regularizer)
    except NotApplicable:
        assert regularizer.name not in shipped or regularizer.name == "none"


@pytest.mark.parametrize("name", sorted(SMALLEST))
def test_smallest_image(name):
    assert smallest_side(REGULARIZERS[name]()) == SMALLEST[name]


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
    row = command.markdown([type(regularizer)]).splitlines()[-1]
    assert all(cell.strip() for cell in row.strip("|").replace(r"\|", "").split("|")), row


def test_the_class_has_the_name_of_its_file(regularizer):
    words = type(regularizer).__name__.rstrip("_")
    assert words.lower() == regularizer.name.replace("_", "")
    assert [part[0] for part in regularizer.name.upper().split("_")] == [c for c in words if c.isupper()]


def test_the_list_names_every_regularizer_with_its_range():
    listed = subprocess.run([sys.executable, "-m", "regularizers"], capture_output=True, text=True, check=True).stdout
    for name, regularizer in REGULARIZERS.items():
        low, high = regularizer.strengths()
        assert f"\n{name}  (weight {low:g} to {high:g} units" in "\n" + listed
        assert inspect.getdoc(regularizer).splitlines()[0] in listed


KINDS = ["ordinary", "constant", "binary", "spike", "flat channel"]


def picture(draw, shape, kind):
    generator = torch.Generator().manual_seed(draw.randrange(2**31))
    if kind == "constant":
        values = torch.full(shape, draw.choice([0.0, 1.0, draw.uniform(-2, 2)]), dtype=torch.float64)
    elif kind == "binary":
        values = torch.randint(2, shape, generator=generator).double()
    elif kind == "spike":
        values = torch.zeros(shape, dtype=torch.float64)
        values[:, 0, 0, 0] = 1.0
    else:
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        if kind == "flat channel":
            values[:, 0] = 0.5
    return values * 10.0 ** draw.choice([-30, 0, 30, draw.randint(-30, 30)])


def pair(draw, kind):
    """Heatmap and image of one shape: degenerate or not, equal or not, at scales from 1e-30 to 1e30."""
    shape = (draw.randint(1, 3), draw.choice([1, 3, 4]), draw.randint(1, 20), draw.randint(1, 20))
    dtype = draw.choice([torch.float64, torch.float32, torch.bfloat16])
    images = picture(draw, shape, draw.choice(KINDS))
    heatmaps = images.clone() if kind == "equal" else 1 - images if kind == "complement" else picture(draw, shape, kind)
    return heatmaps.to(dtype), images.to(dtype)


@pytest.mark.parametrize("kind", [*KINDS, "equal", "complement"])
@pytest.mark.parametrize("name", sorted(REGULARIZERS))
def test_value_and_gradient_are_finite_or_the_size_is_refused(name, kind):
    smallest, draw = smallest_side(REGULARIZERS[name]()), random.Random(kind)
    for number in range(20):
        heatmaps, images = pair(draw, kind)
        heatmaps.requires_grad_()
        if min(images.shape[2:]) < smallest:
            with pytest.raises(ValueError, match=f"at least {smallest}x{smallest} pixels"):
                REGULARIZERS[name]().distance(heatmaps, images)
            continue
        losses = REGULARIZERS[name]().distance(heatmaps, images)
        assert losses.shape == images.shape[:1], number
        assert losses.dtype == (torch.float64 if images.dtype == torch.float64 else torch.float32), number
        assert losses.isfinite().all(), number
        if losses.requires_grad:
            assert torch.autograd.grad(losses.sum(), heatmaps)[0].isfinite().all(), number


def test_images_that_do_not_require_grad_are_refused():
    forward = Forward(torch.zeros(1, 3, 4, 4), torch.tensor([0]), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="requires_grad_"):
        forward.heatmap(forward.class_logits)
