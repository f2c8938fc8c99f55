"""Numbers of heatmaps against torchmetrics, captum, SciPy, the PSNR-HVS reference package and closed forms."""

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr
from torch import nn

from regularizers.functional import minmax_scale
from trainer.evaluate.heatmaps import correlation, heatmap, similarity, structure

with warnings.catch_warnings():  # of the libraries' own imports
    warnings.simplefilter("ignore")
    from captum.attr import Saliency
    from torchmetrics.functional import image as torchmetrics

FOLDER = Path(__file__).parents[2] / "golden"
MAIN, HVS = (np.load(FOLDER / f"{name}.npz") for name in ("metric_main", "psnr_hvs"))
ROWS = torch.arange(16.0).reshape(1, 1, 16, 1).expand(1, 3, 16, 16)
ZERO = torch.zeros(1, 3, 16, 16)
SPIKE = ZERO.clone()
SPIKE[0, 1, 5, 7] = -4


def photographs():
    pair = (torch.from_numpy(MAIN[f"main/{name}"]).double().permute(0, 3, 1, 2) for name in ("heatmaps", "images"))
    return tuple(tensor.contiguous() for tensor in pair)


def network():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 6, 3), nn.Softplus(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(54, 4)
    return nn.Sequential(*layers).double().eval().requires_grad_(False)


def assert_equal(ours, theirs, **tolerance):
    theirs = torch.as_tensor(theirs, dtype=torch.float64)
    torch.testing.assert_close(ours.double(), theirs, **({"rtol": 1e-9, "atol": 1e-12} | tolerance))


def test_heatmap_is_captums_saliency_with_its_sign():
    model, (_, images), labels = network(), photographs(), torch.tensor([3, 0, 1, 3])
    theirs = Saliency(model).attribute(images.clone().requires_grad_(), target=labels, abs=False)
    assert_equal(heatmap(model, images, labels), theirs)
    assert not images.requires_grad


def test_heatmap_of_any_callable_in_half_precision():
    matrix = torch.randn(3 * 4 * 4, 5)
    images, labels = torch.randn(2, 3, 4, 4), torch.tensor([4, 1])

    def classify(images):
        with torch.autocast("cpu", torch.bfloat16):
            return images.flatten(1) @ matrix

    maps = heatmap(classify, images, labels)
    assert maps.dtype == torch.float32
    assert_equal(maps.flatten(1), matrix.T[labels], rtol=2**-8)  # bfloat16 has 8 bits


def test_similarity_equals_the_libraries():
    heatmaps, images = photographs()
    ours, (x, y) = similarity(heatmaps, images), (minmax_scale(heatmaps), minmax_scale(images))
    options = {"data_range": 1.0, "reduction": "none"}
    _, windows = torchmetrics.structural_similarity_index_measure(x, y, sigma=1.5, return_full_image=True, **options)
    inside = windows[..., 5:-5, 5:-5]  # theirs looks over a mirrored border
    assert_equal(ours["heatmap_ssim"], inside.mean(dim=(1, 2, 3)))
    theirs = torchmetrics.peak_signal_noise_ratio(x, y, dim=(1, 2, 3), **options)
    assert_equal(ours["heatmap_psnr"], theirs, rtol=1e-7)  # theirs takes the logarithm of 10 in float32
    pairs = zip(heatmaps.flatten(1).numpy(), images.flatten(1).numpy(), strict=True)
    assert_equal(ours["heatmap_correlation"], [pearsonr(*pair).statistic for pair in pairs])
    column = HVS["columns"].tolist().index("psnr_hvs")
    assert_equal(ours["heatmap_psnr_hvs"], HVS["main/luma"][:, column])
    assert all(values.shape == (4,) for values in ours.values())


def test_float32_is_no_less_exact():
    heatmaps, images = (values.float() for values in photographs())
    rounded, exact = similarity(heatmaps, images), similarity(heatmaps.double(), images.double())
    for name, values in exact.items():
        torch.testing.assert_close(rounded[name], values, rtol=0, atol=0)


def test_structure_equals_torchmetrics_and_numpy():
    heatmaps, _ = photographs()
    ours, (_, _, height, width) = structure(heatmaps), heatmaps.shape
    sums = torchmetrics.total_variation(minmax_scale(heatmaps), reduction="none")
    assert_equal(ours["heatmap_tv"], sums / (3 * (2 * height * width - height - width)))
    assert_equal(ours["heatmap_norm"], np.linalg.norm(heatmaps.flatten(1).numpy(), axis=1))
    # Half the mean absolute difference of all pairs, over the mean: another definition of the same index.
    for values, gini in zip(heatmaps.abs().sum(1).flatten(1).numpy(), ours["heatmap_gini"], strict=True):
        differences = np.abs(values[:, None] - values).mean()
        assert gini.item() == pytest.approx(differences / (2 * values.mean()), rel=1e-12)
    # Sparseness() of Quantus 0.6.0, run once on 2026-11-24 (it brings OpenCV and scikit-image, so it is no dependency)
    # on a million times these values, because it adds 1e-7 to each.
    quantus = [0.4521233731189013, 0.33130689339321423, 0.32933588064425623, 0.42001243958285517]
    assert_equal(ours["heatmap_gini"], quantus, rtol=1e-10)


@pytest.mark.parametrize(
    ("maps", "tv", "gini", "norm"),
    [
        (ZERO, 0, 0, 0),
        (ZERO - 2, 0, 0, 2 * math.sqrt(3 * 256)),
        (SPIKE, 4 / (3 * 480), 1 - 1 / 256, 4),
        # Every second pair is one step of a ramp; the Gini index of 0 … n-1 is (n + 1) / 3n.
        (-ROWS, 1 / 15 / 2, 17 / 48, math.sqrt(3 * 16 * 1240)),
        (1e-30 * ROWS, 1 / 15 / 2, 17 / 48, 1e-30 * math.sqrt(3 * 16 * 1240)),
        (1e30 * ROWS, 1 / 15 / 2, 17 / 48, 1e30 * math.sqrt(3 * 16 * 1240)),
    ],
    ids=["zero", "constant", "spike", "ramp", "tiny", "huge"],
)
def test_structure_in_closed_form(maps, tv, gini, norm):
    ours = structure(maps)
    assert ours["heatmap_tv"].item() == pytest.approx(tv, rel=1e-6)  # float32 input
    assert ours["heatmap_gini"].item() == pytest.approx(gini, rel=1e-6)
    assert ours["heatmap_norm"].item() == pytest.approx(norm, rel=1e-6)


@pytest.mark.parametrize(
    ("maps", "images", "ssim", "pearson", "psnr", "psnr_hvs"),
    [
        (ROWS, ROWS, 1, 1, 100, 100),
        (1e-30 * ROWS - 1e-30, 7 * ROWS, 1, 1, 100, 100),
        (-ROWS, ROWS, None, -1, -10 * math.log10(4 * 1240 / 15**2 / 16 - 1), None),
        (ZERO, ROWS, None, 0, -10 * math.log10(1240 / 15**2 / 16), None),
        (ROWS, ZERO + 0.1, None, 0, -10 * math.log10(1240 / 15**2 / 16), None),
        (ZERO + 0.1, ZERO + 3, 1, 0, 100, 100),
    ],
    ids=["identical", "affine", "negated", "zero-heatmap", "constant-image", "both-constant"],
)
def test_similarity_of_degenerate_pairs(maps, images, ssim, pearson, psnr, psnr_hvs):
    ours = {name: values.item() for name, values in similarity(maps, images).items()}
    assert all(map(math.isfinite, ours.values()))
    assert ours["heatmap_correlation"] == pytest.approx(pearson, abs=1e-6)
    assert ours["heatmap_psnr"] == pytest.approx(psnr, abs=1e-5)
    assert ssim is None or ours["heatmap_ssim"] == pytest.approx(ssim, abs=1e-6)
    assert psnr_hvs is None or ours["heatmap_psnr_hvs"] == psnr_hvs


@pytest.mark.parametrize("level", [0.1, 1 / 3, -7.7])
def test_nothing_correlates_with_a_constant(level):
    """Whose mean, subtracted, leaves rounding noise."""
    noise = torch.randn(1, 3, 13, 17, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert correlation(torch.full_like(noise, level), noise).item() == 0


def test_psnr_hvs_of_a_flat_difference_is_negative():
    image = ZERO.clone()
    image[..., 0, 0] = 1  # scales to itself; the heatmap is its negative
    flat = 25.73509 / 16  # visibility of a block's mean
    value = similarity(-image, image)["heatmap_psnr_hvs"].item()
    assert -10 * math.log10(flat**2) < value < -3


@pytest.mark.parametrize("side", [8, 10, 11])
def test_small_images(side):
    torch.manual_seed(0)
    maps, images = torch.randn(2, 2, 3, side, side)
    assert all(values.isfinite().all() for values in similarity(maps, images).values())


def test_images_below_a_block_are_refused():
    with pytest.raises(ValueError, match="at least 8x8 pixels, got 7x9"):
        similarity(torch.randn(1, 3, 7, 9), torch.randn(1, 3, 7, 9))
    assert structure(torch.ones(1, 3, 1, 1))["heatmap_tv"].item() == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_example_stays_alone(bad):
    heatmaps, images = photographs()
    broken = heatmaps.clone()
    broken[1, 2, 3, 4] = bad
    for function, arguments in ((similarity, (images,)), (structure, ())):
        whole, others = function(heatmaps, *arguments), function(broken, *arguments)
        for name, values in others.items():
            assert_equal(values[[0, 2, 3]], whole[name][[0, 2, 3]])
            assert not values[1].isfinite(), name


def test_an_example_alone_has_the_values_it_has_in_a_batch():
    heatmaps, images = (values.float() for values in photographs())
    together = similarity(heatmaps, images) | structure(heatmaps)
    alone = similarity(heatmaps[2:3], images[2:3]) | structure(heatmaps[2:3])
    for name, values in together.items():
        torch.testing.assert_close(alone[name], values[2:3], rtol=1e-6, atol=1e-6)


values = st.one_of(st.just(0.0), st.floats(1e-30, 1e30), st.floats(-1e30, -1e-30))


@settings(max_examples=25, deadline=None)
@given(st.lists(values, min_size=8, max_size=8), st.lists(values, min_size=8, max_size=8), st.randoms())
def test_ranges_hold_for_any_heatmap(some, others, order):
    def picture(values):
        cells = values * (3 * 8 * 16 // len(values))
        order.shuffle(cells)
        return torch.tensor(cells, dtype=torch.float64).reshape(1, 3, 8, 16)

    maps, images = picture(some), picture(others)
    found = {name: tensor.item() for name, tensor in (similarity(maps, images) | structure(maps)).items()}
    ranges = {"ssim": (-1, 1), "correlation": (-1, 1), "psnr": (0, 100), "psnr_hvs": (-10, 100), "tv": (0, 1)}
    for name, (low, high) in ranges.items():
        assert low - 1e-12 <= found[f"heatmap_{name}"] <= high + 1e-12, name
    assert 0 <= found["heatmap_gini"] < 1
    assert math.isfinite(found["heatmap_norm"])
    assert correlation(maps, images).item() == pytest.approx(correlation(images, maps).item(), abs=1e-12)
