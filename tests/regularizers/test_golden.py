"""Every heatmap loss against the numbers of the original TensorFlow code (tests/golden/)."""

import ast
import zipfile
from pathlib import Path

import pytest
import torch

from regularizers import REGULARIZERS
from regularizers.functional import luma, minmax_scale
from regularizers.psnr_hvs_dct import visible_error
from regularizers.psnr_hvs_m import masked_error

FOLDER = Path(__file__).parents[1] / "golden"
TYPES = {"<f8": torch.float64, "<f4": torch.float32, "<i4": torch.int32}


class Archive:
    """An .npz file without NumPy: arrays as tensors, words as a list."""

    def __init__(self, path):
        self.file = zipfile.ZipFile(path)
        self.names = {name.removesuffix(".npy") for name in self.file.namelist()}

    def __contains__(self, name):
        return name in self.names

    def __getitem__(self, name):
        content = self.file.read(f"{name}.npy")
        assert content[:8] == b"\x93NUMPY\x01\x00"
        size = 10 + int.from_bytes(content[8:10], "little")
        header, content = ast.literal_eval(content[10:size].decode()), bytearray(content[size:])
        kind, shape = header["descr"], header["shape"]
        assert not header["fortran_order"]
        if kind.startswith("<U"):
            step = 4 * int(kind[2:])
            return [content[at : at + step].decode("utf-32-le").rstrip("\0") for at in range(0, len(content), step)]
        return torch.frombuffer(content, dtype=TYPES[kind]).reshape(shape)


MAIN, EDGE, HVS = (Archive(FOLDER / f"{name}.npz") for name in ("metric_main", "metric_edge", "psnr_hvs"))
NAMES = MAIN["reg_names"]
TOLERANCE = {"f64": 1e-10, "f32": 1e-6}


def tolerance(name, precision):
    return 5e-5 if precision == "f32" and name.startswith("ssim") else TOLERANCE[precision]


def load(source, subset, precision):
    dtype = {"f64": torch.float64, "f32": torch.float32}[precision]
    pair = (source[f"{subset}/{key}"].to(dtype).permute(0, 3, 1, 2) for key in ("heatmaps", "images"))
    heatmaps, images = (tensor.contiguous() for tensor in pair)
    return heatmaps.requires_grad_(), images


@pytest.mark.parametrize("precision", ["f64", "f32"])
@pytest.mark.parametrize("subset", ["main", "small"])
@pytest.mark.parametrize("name", NAMES)
def test_value_and_gradient_equal_the_original(name, subset, precision):
    heatmaps, images = load(MAIN, subset, precision)
    losses = REGULARIZERS[name]().distance(heatmaps, images)
    row, rtol = NAMES.index(name), tolerance(name, precision)
    # One example of upstream's float32 `cor` is 5e-6 off its own float64; per example the truth is the reference.
    atol = 1e-6 if precision == "f32" else 0  # a mean SSIM near 0 is a difference of numbers near 1
    assert_close(losses.detach(), MAIN[f"{subset}/f64/per_example"][row], rtol, atol)
    assert_close(losses.mean().detach(), MAIN[f"{subset}/{precision}/value"][row], rtol)
    (gradient,) = torch.autograd.grad(losses.mean(), heatmaps)
    gradient = gradient.permute(0, 2, 3, 1)
    norm = MAIN[f"{subset}/{precision}/grad_norm"][row]
    assert_close(gradient.double().norm(), norm, max(rtol, 1e-10) * 5)
    if subset == "small":
        golden = MAIN[f"small/{precision}/grad_heat"][row]
        assert_close(gradient, golden, 0, float(golden.abs().max()) * rtol)


def assert_close(ours, golden, rtol, atol=0.0):
    torch.testing.assert_close(ours.double(), golden.double(), rtol=rtol, atol=atol)


CASES, EDGE_NAMES = EDGE["case_names"], EDGE["reg_names"]
# Equal pairs after scaling, but for the rounding: the true value is 0 and the original returns its rounding noise.
NOISE = {("heat_affine_of_image", name) for name in ("mse", "grad_diff", "sobel_edges", "psnr")}


@pytest.mark.parametrize("precision", ["f64", "f32"])
@pytest.mark.parametrize("name", EDGE_NAMES)
@pytest.mark.parametrize("case", CASES)
def test_edge_case_equals_the_original_or_is_finite_where_that_breaks(case, name, precision):
    """Where value and gradient of the original are finite, ours are the same; else ours are finite, or refused."""
    heatmaps, images = load(EDGE, f"in/{case}", precision)
    row, column = CASES.index(case), EDGE_NAMES.index(name)
    broken = EDGE[f"{precision}/grad_nonfinite"][row, column]
    if broken < 0:  # the original raises: the images are smaller than its window
        with pytest.raises(ValueError, match=r"needs images of at least (\d+)x\1 pixels"):
            REGULARIZERS[name]().distance(heatmaps, images)
        return
    losses = REGULARIZERS[name]().distance(heatmaps, images)
    (gradient,) = torch.autograd.grad(losses.mean(), heatmaps)
    assert losses.isfinite().all()
    assert gradient.isfinite().all()
    if (case, name) in NOISE:
        return
    golden, rounded = (EDGE[f"{kind}/per_example"][row, column, : len(losses)] for kind in ("f64", "f32"))
    ours, usable = losses.detach().double(), golden.isfinite()
    if precision == "f32":  # as near to the truth as the original, or within the tolerance
        usable &= rounded.isfinite()
        ours, golden, rounded = ours[usable], golden[usable], rounded[usable]
        off = (rounded - golden).abs().max() if len(ours) else 0.0
        assert ((ours - golden).abs() <= tolerance(name, precision) * golden.abs() + off + 1e-7).all()
        return
    assert_close(ours[usable], golden[usable], 1e-10, 1e-14)
    if not broken and usable.all():
        norm = EDGE["f64/grad_norm"][row, column]
        assert_close(gradient.norm(), norm, 1e-9, 1e-14)
        flat = gradient.permute(0, 2, 3, 1).flatten()
        dot = (flat * torch.cos(0.7 * torch.arange(len(flat), dtype=torch.float64) + 0.3)).sum()
        assert_close(dot, EDGE["f64/grad_dot"][row, column], 1e-9, 1e-10 * float(norm) + 1e-14)


@pytest.mark.parametrize("pair", HVS["pairs"])
def test_psnr_hvs_and_psnr_hvs_m_equal_the_reference_package(pair):
    source, subset = (EDGE, pair.replace("edge/", "in/")) if pair.startswith("edge/") else (MAIN, pair)
    heatmaps, images = (minmax_scale(values.detach()) for values in load(source, subset, "f64"))
    for column, error in ((0, visible_error), (1, masked_error)):
        ours = error(images, heatmaps)  # per plane
        assert_equal_where_finite(ours, HVS[f"{pair}/per_channel"][:, :, column])
        if f"{pair}/luma" in HVS:  # of RGB images
            assert_equal_where_finite(error(luma(images), luma(heatmaps))[:, 0], HVS[f"{pair}/luma"][:, column])


def assert_equal_where_finite(ours, golden):
    """To 1e-9 dB; the package returns NaN for constant images and passes NaN on."""
    usable = golden.isfinite()
    assert_close(ours[usable], golden[usable], 2e-10, 1e-18)
