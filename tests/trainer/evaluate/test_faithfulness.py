"""Deletion, insertion and steadier gradients against captum, SciPy and closed forms."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from scipy.stats import pearsonr
from torch import nn

from trainer.evaluate.faithfulness import agreement, insertion_deletion, integrated_gradient, smooth_gradient
from trainer.evaluate.heatmaps import heatmap

with warnings.catch_warnings():  # of the library's own imports
    warnings.simplefilter("ignore")
    from captum.attr import IntegratedGradients, NoiseTunnel, Saliency

LABELS = torch.tensor([3, 0, 2])
SIDE = 16
LEFT = (torch.arange(SIDE) < SIDE // 2).double().expand(1, 3, SIDE, SIDE)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 6, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(54, 4)
    network = nn.Sequential(*layers).double().eval().requires_grad_(False)
    network[-1].weight *= 9  # probabilities away from 1/4, gradients that change along the way
    return network


@pytest.fixture(scope="module")
def images():
    return torch.randn(3, 3, SIDE, SIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def assert_equal(ours, theirs, tolerance=1e-10):
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def sees_left(images):
    """The true class 0 has as its probability the share of the left half's values that are ±1."""
    share = (images[..., : SIDE // 2].abs() > 0.99).double().mean(dim=(1, 2, 3))
    return torch.stack([share, 1 - share], dim=1).log()


@pytest.mark.parametrize("steps", [2, 4, 16])
@pytest.mark.parametrize(
    ("maps", "deletion", "insertion"),
    [
        (-LEFT, 1 / 4, 3 / 4),  # everything in the first half of the steps
        (1 - LEFT, 3 / 4, 1 / 4),  # … in the second
        (torch.zeros_like(LEFT), 1 / 2, 1 / 2),  # equal pixels row by row: evenly
    ],
    ids=["right", "wrong", "zero"],
)
def test_areas_in_closed_form(images, maps, deletion, insertion, steps):
    areas = insertion_deletion(sees_left, images[:1].sign(), torch.tensor([0]), maps, steps)
    assert_equal(areas["deletion_auc"], torch.tensor([deletion]).double())
    assert_equal(areas["insertion_auc"], torch.tensor([insertion]).double())


def test_images_shown_and_their_probabilities(model, images):
    """The pictures, pixel by pixel, and the area of the probabilities the model gives them.

    PixelFlipping() of Quantus 0.6.0, run once on 2026-11-24 on such a network in float32 and three images of 12x12
    pixels in 12 steps, with the whole image's probability put before its curve (it begins after the first step), has
    the areas 0.28752166, 0.20402158, 0.25856955; deletion_auc had 0.28752166, 0.20402158, 0.25856955.
    """
    maps, shown, steps = heatmap(model, images, LABELS), [], 5

    def classify(images):
        assert not torch.is_grad_enabled()
        shown.append(images)
        return model(images)

    areas = insertion_deletion(classify, images, LABELS, maps, steps)
    blurred = gaussian_filter(images.numpy(), 5, axes=(2, 3), radius=5, mode="constant")
    expected = []
    for background in (torch.zeros_like(images), torch.from_numpy(blurred)):
        curve = []
        for step in range(steps + 1):
            picture, count = images.clone(), round(step * SIDE**2 / steps)
            for example in range(3):
                ranking = sorted(range(SIDE**2), key=lambda i: -maps[example, :, i // SIDE, i % SIDE].abs().sum())  # noqa: B023
                hidden = ranking[count:] if len(expected) else ranking[:count]
                for pixel in hidden:
                    at = example, slice(None), pixel // SIDE, pixel % SIDE
                    picture[at] = background[at]
            curve.append(picture)
        expected.append(curve)
    assert_equal(torch.stack(shown), torch.stack(expected[0] + expected[1][:-1]))
    for name, curve in zip(("deletion_auc", "insertion_auc"), expected, strict=True):
        p = torch.stack([model(picture).softmax(dim=1)[range(3), LABELS] for picture in curve])
        assert_equal(areas[name], (p.sum(dim=0) - (p[0] + p[-1]) / 2) / steps)


def test_integrated_gradient_equals_captums(model, images):
    theirs = IntegratedGradients(model, multiply_by_inputs=False).attribute(
        images, target=LABELS, n_steps=7, method="riemann_middle"
    )
    assert_equal(integrated_gradient(model, images, LABELS, steps=7), theirs, tolerance=1e-8)  # float32 points there


def test_integrated_gradient_is_complete(model, images):
    """Times the image it sums to the change of the logit, the more exactly the more steps."""
    logits = (model(images) - model(torch.zeros_like(images)))[range(3), LABELS]
    sums = (images * integrated_gradient(model, images, LABELS, steps=200)).sum(dim=(1, 2, 3))
    assert_equal(sums, logits, tolerance=1e-4)


def test_smooth_gradient_equals_captums(model, images):
    ours = smooth_gradient(model, images, LABELS, generators(5, 6, 7), samples=4)
    for index, seed in enumerate((5, 6, 7)):
        image = images[index : index + 1]
        torch.manual_seed(seed)
        theirs = NoiseTunnel(Saliency(model)).attribute(
            image.clone(), nt_type="smoothgrad", nt_samples=4, nt_samples_batch_size=1, abs=False,
            stdevs=0.15 * (image.max() - image.min()).item(), target=LABELS[index].item(),
        )  # fmt: skip
        assert_equal(ours[index], theirs[0], tolerance=1e-7)  # float32 deviations there


def test_agreement_is_scipys_correlation(model, images):
    maps = heatmap(model, images, LABELS)
    ours = agreement(model, images, LABELS, maps, generators(5, 6, 7), samples=4)
    others = {
        "smoothgrad_agreement": smooth_gradient(model, images, LABELS, generators(5, 6, 7), samples=4),
        "integrated_agreement": integrated_gradient(model, images, LABELS, steps=4),
    }
    for name, other in others.items():
        pairs = zip(maps.flatten(1).numpy(), other.flatten(1).numpy(), strict=True)
        assert_equal(ours[name], torch.tensor([pearsonr(*pair).statistic for pair in pairs]).double())
        assert (ours[name] < 0.999).all()  # the comparison says something


def test_a_linear_classifier_agrees_entirely_and_its_negative_not_at_all(images):
    matrix = torch.randn(3 * SIDE**2, 4, dtype=torch.float64)
    maps = heatmap(lambda images: images.flatten(1) @ matrix, images, LABELS)
    for sign in (1, -1):
        values = agreement(
            lambda images: images.flatten(1) @ matrix, images, LABELS, sign * maps, generators(1, 2, 3), samples=2
        )
        for value in values.values():
            assert_equal(value, torch.full((3,), sign).double())


@pytest.mark.parametrize("image", [0.0, 0.7], ids=["mean-color", "constant"])
def test_degenerate_input_is_finite(model, image):
    images = torch.full((2, 3, SIDE, SIDE), image, dtype=torch.float64)
    maps, labels = torch.zeros_like(images), torch.tensor([1, 2])
    values = agreement(model, images, labels, maps, generators(0, 1), samples=2)
    assert all((value == 0).all() for value in values.values())  # the heatmap is constant
    areas = insertion_deletion(model, images, labels, maps, steps=2)
    assert all(((value >= 0) & (value <= 1)).all() for value in areas.values())
    if not image:
        probability = model(images).softmax(dim=1)[range(2), labels]
        assert all(torch.allclose(value, probability) for value in areas.values())  # there is nothing to hide


def test_an_example_alone_has_the_values_it_has_in_a_batch(model, images):
    model, images = nn.Sequential(*model).float(), images.float()
    maps = heatmap(model, images, LABELS)
    together = insertion_deletion(model, images, LABELS, maps)
    together |= agreement(model, images, LABELS, maps, generators(5, 6, 7), samples=3)
    one = model, images[1:2], LABELS[1:2], maps[1:2]
    alone = insertion_deletion(*one) | agreement(*one, generators(6), samples=3)
    for name, values in together.items():
        torch.testing.assert_close(alone[name], values[1:2], rtol=1e-6, atol=1e-6)


def test_a_generator_for_each_example(model, images):
    with pytest.raises(ValueError, match="zip"):
        smooth_gradient(model, images, LABELS, generators(5))


def test_nothing_is_left_on_model_and_images(images):
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE**2, 4)).double()
    maps = heatmap(model, images, LABELS)
    values = insertion_deletion(model, images, LABELS, maps, steps=2)
    values |= agreement(model, images, LABELS, maps, generators(1, 2, 3), samples=2)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not images.requires_grad
    assert not any(value.requires_grad for value in (maps, *values.values()))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
def test_areas_lie_between_the_extremes(steps, height, width, seed):
    """A constant probability has itself as its area, for any steps and shape; any other stays within [0, 1]."""
    torch.manual_seed(seed)
    images, maps = torch.randn(2, 2, 3, height, width)
    labels, logits = torch.tensor([0, 1]), torch.randn(2)
    areas = insertion_deletion(lambda images: logits.expand(2, 2), images, labels, maps, steps)
    for values in areas.values():
        assert_equal(values, logits.double().softmax(dim=0), tolerance=1e-9)
    areas = insertion_deletion(lambda images: 50 * images.mean(dim=(2, 3)), images, labels, maps, steps)
    assert all(((values >= 0) & (values <= 1 + 1e-12)).all() for values in areas.values())
