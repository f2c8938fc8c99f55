"""Common corruptions: repeatable, stronger with severity, and each what its formula says."""

import colorsys
import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from sklearn.datasets import load_sample_images

from trainer.evaluate.blur import convolve, disk, gaussian, line
from trainer.evaluate.corruptions import CORRUPTIONS, FAMILIES

RANDOM = {"gaussian_noise", "shot_noise", "impulse_noise", "motion_blur", "fog", "snow"}
BLURS = ("gaussian_blur", "defocus_blur", "motion_blur")
SEVERITIES = range(1, 6)


def to_pixels(picture):
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


PHOTOGRAPHS = [
    to_pixels(Image.fromarray(photograph[:420, :420]).resize((224, 224), Image.Resampling.BICUBIC))
    for photograph in load_sample_images().images
]


def corrupt(name, pixels, severity, seed=0):
    return CORRUPTIONS[name](pixels, severity, torch.Generator().manual_seed(seed))


def distance(one, other):
    return (one.double() - other.double()).square().mean().sqrt().item()


def shrunk(pixels, factor):
    return torch.nn.functional.avg_pool2d(pixels.double(), factor)


def gray(level, side=224):
    return torch.full((3, side, side), level, dtype=torch.uint8)


def test_every_corruption_is_of_one_family():
    assert sum(map(len, FAMILIES.values())) == len(CORRUPTIONS)
    assert list(FAMILIES) == ["noise", "blur", "weather", "digital"]


@pytest.mark.parametrize(("height", "width"), [(224, 224), (32, 32), (40, 25), (5, 64), (1, 1)])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_function_of_pixels_severity_and_generator(name, height, width):
    pixels = PHOTOGRAPHS[0][:, 60 : 60 + height, :width].contiguous()
    if height == 224:
        pixels = PHOTOGRAPHS[0]
    before, state = pixels.clone(), torch.get_rng_state()
    corrupted = corrupt(name, pixels, 3)
    assert corrupted.shape == pixels.shape
    assert corrupted.dtype == torch.uint8
    assert corrupted.is_contiguous()
    assert torch.equal(pixels, before)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(int(state[0]) + 1)
    assert torch.equal(corrupt(name, pixels, 3), corrupted)
    if min(height, width) > 1:
        assert torch.equal(corrupt(name, pixels, 3, seed=1), corrupted) == (name not in RANDOM)


@pytest.mark.parametrize("photograph", PHOTOGRAPHS)
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_stronger_with_severity(name, photograph):
    distances = [distance(corrupt(name, photograph, severity), photograph) for severity in SEVERITIES]
    assert distances[0] > 5
    # Fog of severity 4 differs from that of 3 by its grain only, in ImageNet-C too.
    grain = 0.97 if name == "fog" else 1
    assert all(later > grain * sooner for sooner, later in zip(distances, distances[1:], strict=False)), distances
    assert distances[4] > 1.15 * distances[0]


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("severity", [0, 6, -1])
def test_other_severities_are_refused(name, severity):
    with pytest.raises(ValueError, match=f"severity={severity}: give 1 .mild. to 5 .strong."):
        corrupt(name, PHOTOGRAPHS[0], severity)


@pytest.mark.parametrize("name", [*BLURS, "snow", "fog"])
def test_a_thumbnail_is_treated_as_the_scene_at_a_lower_resolution(name):
    for photograph in PHOTOGRAPHS:
        thumbnail = shrunk(photograph, 7).round().to(torch.uint8)
        for severity in SEVERITIES:
            wanted = shrunk(corrupt(name, photograph, severity), 7)
            # Gray levels; blurs of the same radius in pixels as at 224 are 13 to 42 apart.
            apart = distance(corrupt(name, thumbnail, severity), wanted)
            assert apart < 4.5 + 0.1 * distance(thumbnail, wanted), severity


def test_gaussian_noise_has_its_deviation():
    for severity, std in zip(SEVERITIES, (0.08, 0.12, 0.18), strict=False):  # stronger ones are clipped
        noise = (corrupt("gaussian_noise", gray(128), severity).double() - 128) / 255
        assert noise.mean().abs() < 5 * std / noise.numel() ** 0.5 + 1e-3
        assert noise.std().item() == pytest.approx(std, rel=0.01)
    red, green, _ = noise.flatten(1)
    assert np.corrcoef(red, green)[0, 1] == pytest.approx(0, abs=0.02)


def test_shot_noise_has_the_variance_of_counts():
    for severity, photons in zip(SEVERITIES, (60, 25, 12, 5, 3), strict=True):
        level = 51  # a fifth: nothing is clipped but for the last two
        counts = corrupt("shot_noise", gray(level), severity).double() / 255 * photons
        assert counts.mean().item() == pytest.approx(photons / 5, rel=0.02)
        assert counts.var().item() == pytest.approx(photons / 5, rel=0.03 if severity < 4 else 0.1)
        assert (counts - counts.round()).abs().max() < photons / 255
    assert torch.equal(corrupt("shot_noise", gray(0), 5), gray(0))


def test_impulse_noise_replaces_its_share_of_values():
    for severity, amount in zip(SEVERITIES, (0.03, 0.06, 0.09, 0.17, 0.27), strict=True):
        noisy = corrupt("impulse_noise", gray(128), severity)
        for level in (0, 255):
            assert (noisy == level).double().mean().item() == pytest.approx(amount / 2, abs=0.002)
        assert (noisy == 128).double().mean().item() == pytest.approx(1 - amount, abs=0.003)
    assert not torch.equal(noisy[0] == 128, noisy[1] == 128)


@pytest.mark.parametrize("name", BLURS)
def test_a_blur_keeps_a_constant_image_and_the_mean(name):
    photograph = PHOTOGRAPHS[1].clone()
    photograph[:, :60] = photograph[:, -60:] = 90  # far from the border, nothing gets lost
    photograph[:, :, :60] = photograph[:, :, -60:] = 90
    for severity in SEVERITIES:
        for level in (0, 77, 255):
            assert torch.equal(corrupt(name, gray(level), severity), gray(level))
        blurred = corrupt(name, photograph, severity)
        means = (pixels.double().mean(dim=(1, 2)) for pixels in (blurred, photograph))
        torch.testing.assert_close(*means, rtol=0, atol=0.02)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.5])
def test_gaussian_blur_is_scipys_of_square_pixels(sigma):
    fine, plane = 16, PHOTOGRAPHS[0][1, 100:120, 90:115].double().numpy()
    squares = plane.repeat(fine, axis=0).repeat(fine, axis=1)
    expected = ndimage.gaussian_filter(squares, fine * sigma, mode="nearest", truncate=6)
    expected = expected.reshape(20, fine, 25, fine).mean(axis=(1, 3))
    blurred = convolve(torch.from_numpy(plane)[None].float(), gaussian(sigma))[0]
    np.testing.assert_allclose(blurred, expected, atol=0.15)  # gray levels; scipy's grid is 1/16 pixel


def test_convolution_is_scipys():
    kernel = torch.rand(9, 9, generator=torch.Generator().manual_seed(0))
    planes = PHOTOGRAPHS[0][:, 30:71, 40:90].float()
    expected = [ndimage.convolve(plane.numpy(), kernel.numpy(), mode="nearest") for plane in planes]
    np.testing.assert_allclose(convolve(planes, kernel), np.stack(expected), rtol=1e-5)


def moments(kernel):
    reach = len(kernel) // 2
    along = torch.arange(-reach, reach + 1, dtype=torch.float64)
    kernel = kernel.double()
    assert kernel.min() >= 0
    assert kernel.sum().item() == pytest.approx(1, abs=1e-6)
    y, x = kernel.sum(1) @ along, kernel.sum(0) @ along
    return y.item(), x.item(), (kernel.sum(1) @ along**2 - y**2).item(), (kernel.sum(0) @ along**2 - x**2).item()


def test_moments_of_kernels():
    # Integration over pixels adds a sixth of a square pixel.
    assert moments(gaussian(3.0)) == pytest.approx((0, 0, 9 + 1 / 6, 9 + 1 / 6), abs=0.02)
    for radius in (1.5, 6.0, 10.0):
        variance = radius**2 / 4 + 1 / 6
        assert moments(disk(radius)) == pytest.approx((0, 0, variance, variance), rel=0.02, abs=1e-6)
    angle, far = 0.5, 15 * (2 / np.pi) ** 0.5  # mean of half a normal distribution
    y, x, *_ = moments(line(100.0, 15.0, angle))
    assert (y, x) == pytest.approx((far * np.sin(angle), far * np.cos(angle)), rel=0.02)
    assert moments(line(100.0, 15.0, angle, 0.5))[:2] == pytest.approx((y / 2, x / 2), rel=1e-6)
    assert line(5.0, 15.0, 0.0)[6, 6:12].gt(0.05).tolist() == [True] * 6  # ends where it shall


def test_motion_goes_to_the_right():
    dot = gray(0)
    dot[:, 112, 112] = 255
    lit = {tuple(np.sign(where)) for seed in range(30) for where in _trail(corrupt("motion_blur", dot, 1, seed))}
    assert lit >= {(1, 1), (-1, 1)}
    assert all(x >= 0 for _, x in lit)


def _trail(pixels):
    rows, columns = torch.nonzero(pixels[0] > 5, as_tuple=True)
    return [(y, x) for y, x in zip((rows - 112).tolist(), (columns - 112).tolist(), strict=True) if abs(x) > 1]


def test_brightness_raises_the_value_alone():
    colors = torch.tensor([[0, 0, 0], [10, 60, 200], [120, 119, 30], [255, 0, 3]], dtype=torch.uint8)
    pixels = colors.T.reshape(3, 2, 2).contiguous()
    for severity in SEVERITIES:
        bright = corrupt("brightness", pixels, severity).reshape(3, 4).T
        for color, found in zip(colors.tolist(), bright.tolist(), strict=True):
            hue, saturation, value = colorsys.rgb_to_hsv(*(level / 255 for level in color))
            expected = colorsys.hsv_to_rgb(hue, saturation, min(1, value + severity / 10))
            assert found == pytest.approx([255 * level for level in expected], abs=0.501)


def test_fog_is_a_veil_between_none_and_full():
    weights = (1.5, 2, 2.5, 2.5, 3)
    for severity, weight in zip(SEVERITIES, weights, strict=True):
        foggy = corrupt("fog", gray(204), severity)  # four fifths: the white that the veil is scaled to
        assert (foggy[0] == foggy[1]).all()
        assert foggy.min().item() == round(255 * 0.8 * 0.8 / (0.8 + weight))
        assert foggy.max().item() == 204
    assert torch.equal(corrupt("fog", gray(0), 5), gray(0))


def test_fog_is_smooth_and_finer_with_severity():
    grains = []
    for severity in (2, 3, 4, 5):
        veil = corrupt("fog", gray(255), severity)[0].double()
        grains.append(((veil[1:] - veil[:-1]).std() / veil.std()).item())
    assert grains == sorted(grains)
    assert 0.01 < grains[0] < grains[-1] < 0.5  # of white noise: 1.4


def test_snow_whitens_and_adds_flakes():
    for severity, keep in zip(SEVERITIES, (0.8, 0.7, 0.7, 0.65, 0.55), strict=True):
        snowy = corrupt("snow", gray(0), severity)
        assert snowy.min().item() == pytest.approx(255 * 0.5 * (1 - keep), abs=0.51)
        assert torch.equal(snowy, snowy.flip(1, 2))  # every flake falls twice, the other from below
        share = (snowy[0] > snowy.min() + 5).double().mean().item()
        assert 0.1 < share < 0.95
        assert (corrupt("snow", PHOTOGRAPHS[0], severity) >= PHOTOGRAPHS[0]).all()


def test_contrast_shrinks_towards_the_mean_of_each_channel():
    photograph = PHOTOGRAPHS[0]
    mean = photograph.double().mean(dim=(1, 2), keepdim=True)
    for severity, left in zip(SEVERITIES, (0.4, 0.3, 0.2, 0.1, 0.05), strict=True):
        expected = mean + left * (photograph.double() - mean)
        assert (corrupt("contrast", photograph, severity) - expected).abs().max() < 0.502


def test_pixelate_makes_blocks():
    photograph = PHOTOGRAPHS[0][:, :, :112]
    for severity, block in ((2, 2), (5, 4)):
        mosaic = corrupt("pixelate", photograph, severity)
        means = shrunk(photograph, block).repeat_interleave(block, 1).repeat_interleave(block, 2)
        assert (mosaic - means).abs().max() <= 1  # Pillow rounds after each axis


def test_jpeg_is_pillows_at_its_quality():
    for severity, quality in zip(SEVERITIES, (25, 18, 15, 10, 7), strict=True):
        buffer = io.BytesIO()
        Image.fromarray(PHOTOGRAPHS[0].permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=quality)
        assert torch.equal(corrupt("jpeg", PHOTOGRAPHS[0], severity), to_pixels(Image.open(buffer)))
