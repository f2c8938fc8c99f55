"""Every heatmap loss against the numbers of the original TensorFlow code (tests/golden/)."""

from pathlib import Path

import numpy as np
import pytest
import torch

from regularizers import REGULARIZERS

MAIN = np.load(Path(__file__).parents[1] / "golden" / "metric_main.npz")
NAMES = [str(name) for name in MAIN["reg_names"]]
TOLERANCE = {"f64": 1e-10, "f32": 1e-6}


def tolerance(name, precision):
    return 5e-5 if precision == "f32" and name.startswith("ssim") else TOLERANCE[precision]


def load(subset, precision):
    dtype = {"f64": torch.float64, "f32": torch.float32}[precision]
    pair = (torch.from_numpy(MAIN[f"{subset}/{key}"]).to(dtype).permute(0, 3, 1, 2) for key in ("heatmaps", "images"))
    heatmaps, images = (tensor.contiguous() for tensor in pair)
    return heatmaps.requires_grad_(), images


@pytest.mark.parametrize("precision", ["f64", "f32"])
@pytest.mark.parametrize("subset", ["main", "small"])
@pytest.mark.parametrize("name", NAMES)
def test_value_and_gradient_equal_the_original(name, subset, precision):
    heatmaps, images = load(subset, precision)
    losses = REGULARIZERS[name]().distance(heatmaps, images)
    row, rtol = NAMES.index(name), tolerance(name, precision)
    # One example of upstream's float32 `cor` is 5e-6 off its own float64; per example the truth is the reference.
    atol = 1e-6 if precision == "f32" else 0  # a mean SSIM near 0 is a difference of numbers near 1
    np.testing.assert_allclose(losses.detach(), MAIN[f"{subset}/f64/per_example"][row], rtol=rtol, atol=atol)
    np.testing.assert_allclose(losses.mean().item(), MAIN[f"{subset}/{precision}/value"][row], rtol=rtol)
    (gradient,) = torch.autograd.grad(losses.mean(), heatmaps)
    gradient = gradient.permute(0, 2, 3, 1).numpy()
    norm = MAIN[f"{subset}/{precision}/grad_norm"][row]
    np.testing.assert_allclose(np.linalg.norm(gradient.astype(np.float64)), norm, rtol=max(rtol, 1e-10) * 5)
    if subset == "small":
        golden = MAIN[f"small/{precision}/grad_heat"][row]
        np.testing.assert_allclose(gradient, golden, rtol=0, atol=norm * (rtol if precision == "f64" else 1e-4))
