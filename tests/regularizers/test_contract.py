"""A regularizer that breaks its contract says so, by its name, where it is used."""

import importlib.util
import sys

import pytest
import torch
from mine import of, pattern, squares
from torch import nn
from torch.overrides import TorchFunctionMode

from regularizers import REGULARIZERS, Forward, RegularizerError
from regularizers.base import checked

NAN = float("nan")


def forward(images=None, labels=4):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Softplus(), nn.Flatten(), nn.Linear(4 * 36, 5))
    images = (torch.randn(labels, 3, 8, 8) if images is None else images).requires_grad_()
    return Forward(images, torch.arange(len(images)), model(images))


WRONG = {
    "float": (lambda self, h, i: h.square().mean().item(), "a float, expected a tensor (4,).*leave out float()"),
    "numpy": (lambda self, h, i: h.detach().numpy().mean((1, 2, 3)), "returned a ndarray"),
    "scalar": (lambda self, h, i: h.square().mean(), r"returned shape (), expected .*not over the batch"),
    "(b,1)": (lambda self, h, i: h.square().mean((1, 2, 3))[:, None], "shape (4, 1), .*reduce over dim=(1, 2, 3)"),
    "(b,c)": (lambda self, h, i: h.square().mean((2, 3)), "returned shape (4, 3)"),
    "length": (lambda self, h, i: h[1:].square().mean((1, 2, 3)), "returned shape (3,), expected a tensor (4,)"),
    "integers": (lambda self, h, i: h.mean((1, 2, 3)).long(), "returned torch.int64 values"),
    "booleans": (lambda self, h, i: h.mean((1, 2, 3)) > 0, "returned torch.bool values"),
    "complex": (lambda self, h, i: torch.fft.fft2(h).mean((1, 2, 3)), "returned torch.complex64 values"),
    "detached": (lambda self, h, i: h.detach().mean((1, 2, 3)), "without a graph, .*: leave out .detach()"),
    "NaN": (lambda self, h, i: (h - h).sum((1, 2, 3)) / 0, "returned NaN for every example"),
    "infinity": (lambda self, h, i: h.square().sum((1, 2, 3)) / 0, "returned infinity for every example"),
    "exit": (lambda self, h, i: sys.exit(3), r"raised SystemExit: 3 (test_contract.py, line \d+)"),
    "error": (lambda self, h, i: h + i[:, :2], r"raised RuntimeError: The size of .*(test_contract.py, line \d+)"),
    "key": (lambda self, h, i: {}["scale"], "raised KeyError: 'scale'"),
    "nothing": (lambda self, h, i: None, "returned a NoneType"),
}  # fmt: skip  # fmt: skip


if importlib.util.find_spec("numpy") is None:
    del WRONG["numpy"]


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_formula_is_refused_by_name(kind):
    formula, message = WRONG[kind]
    with pytest.raises(RegularizerError, match=f"^regularizer 'mine': .*{pattern(message)}") as caught:
        of(formula).penalty(forward())
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) <= 200, "the reason of a failed trial is cut there"
    heatmap = torch.randn(4, 3, 8, 8, requires_grad=True)
    with pytest.raises(ValueError, match="regularizer 'mine'"):
        of(formula).distance(heatmap, torch.randn(4, 3, 8, 8))


WRONG_SCORES = {
    "scalar": (lambda self, f: f.losses.mean(), "score returned shape ()"),
    "integers": (lambda self, f: f.labels, "score returned torch.int64"),
    "detached": (lambda self, f: f.losses.detach(), "score returned values without a graph"),
    "attribute": (lambda self, f: f.probabilities, "score raised AttributeError"),
    "NaN": (lambda self, f: f.class_logits * NAN, "score returned NaN for every example"),
    "infinity": (lambda self, f: f.class_logits.abs() / 0, "score returned infinity for every example"),
    "constant": (lambda self, f: torch.zeros(len(f.labels), requires_grad=True), "does not depend on the images"),
    "exit": (lambda self, f: sys.exit("enough"), r"score raised SystemExit: enough (test_contract.py, line \d+)"),
}


@pytest.mark.parametrize("kind", WRONG_SCORES)
def test_so_is_a_wrong_score(kind):
    score, message = WRONG_SCORES[kind]
    with pytest.raises(RegularizerError, match=f"^regularizer 'mine': .*{pattern(message)}") as caught:
        checked(of(squares, score=score), forward())
    assert "\n" not in str(caught.value)


def test_so_is_a_distance_without_the_heatmap_that_it_needs():
    given = forward()
    for images in (given.images, given.images.detach()):  # the training step lets them carry no gradient
        given = Forward(images, given.labels, given.logits)
        with pytest.raises(RegularizerError, match="^regularizer 'mine': has needs_heatmap = False, but no penalty"):
            checked(of(squares, needs_heatmap=False), given)


@pytest.mark.parametrize("kind", WRONG)
def test_so_is_a_penalty_of_its_own(kind):
    wrong = WRONG[kind][0]

    def penalty(self, forward):
        return wrong(self, forward.heatmap(forward.class_logits), forward.images)

    with pytest.raises(RegularizerError, match="^regularizer 'mine': penalty "):
        checked(of(squares, penalty=penalty), forward())
    with pytest.raises(RegularizerError, match="^regularizer 'mine': distance "):
        of(squares, distance=lambda self, h, i: wrong(self, h, i)).penalty(forward())


def test_the_baseline_needs_no_graph_and_a_network_without_one_is_no_fault():
    REGULARIZERS["none"]().distance(torch.randn(4, 3, 8, 8, requires_grad=True), torch.randn(4, 3, 8, 8))
    with torch.no_grad():
        of(squares).distance(torch.randn(4, 3, 8, 8, requires_grad=True), torch.randn(4, 3, 8, 8))
    pixels = forward(torch.randn(2, 3, 8, 8))
    with pytest.raises(ValueError, match="requires_grad_"):
        of(squares).penalty(Forward(pixels.images.detach(), pixels.labels, pixels.logits.detach()))


def relative(self, heatmap, images):
    """NaN for an image of one value, as unguarded divisions are."""
    return squares(self, heatmap, images) / images.flatten(1).std(dim=1) * images.flatten(1).std(dim=1)


def test_nan_is_an_error_only_if_every_example_could_be_right():
    heatmaps, images = torch.randn(2, 3, 3, 8, 8)
    images[0] = 2.0
    values = of(relative).distance(heatmaps, images)
    assert values[0] == 0, "one of three"
    assert values[1:].all()
    with pytest.raises(RegularizerError, match="NaN for every example"):
        of(relative).distance(heatmaps[:1], images[:1])
    heatmaps[1:] = NAN
    with pytest.raises(RegularizerError, match="NaN for every example"):
        of(relative).distance(heatmaps, images)
    heatmaps[0] = NAN  # a network that diverges
    assert not of(relative).distance(heatmaps, images).any()


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_what_the_data_type_cannot_hold_counts_nothing(scale):
    heatmaps, images = torch.randn(2, 3, 3, 8, 8)
    quotient = of(lambda self, h, i: squares(self, h, i) / squares(self, h, i))
    assert not quotient.distance(scale * heatmaps, images).any(), "0/0 or ∞/∞"
    assert not of(lambda self, h, i: 1 / squares(self, h, i)).distance(1e-30 * heatmaps, images).any(), "∞"


def test_infinity_of_one_ordinary_example_counts_nothing_and_of_all_is_refused():
    heatmaps, images = torch.randn(2, 3, 3, 8, 8)
    large = of(lambda self, h, i: 1e38 * squares(self, 9 * h, i))
    with pytest.raises(RegularizerError, match="infinity for every example"):
        large.distance(9 * heatmaps, images)
    heatmaps[1:] *= 1e-6
    values = large.distance(9 * heatmaps, images)
    assert values[0] == 0
    assert (values[1:] > 0).all()


class Looks(TorchFunctionMode):
    """Counts how often the host waits for a value."""

    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.number += func is torch.Tensor.__bool__
        return func(*args, **kwargs or {})


@pytest.mark.parametrize(("device", "looks"), [("cpu", [1, 2, 3]), ("meta", [1, 1, 1])])
def test_an_accelerator_is_waited_for_once(device, looks):
    heatmaps, images = torch.randn(2, 3, 3, 8, 8, device=device)
    mine, seen = of(squares), []
    with Looks() as mode:
        for _ in looks:
            mine.distance(heatmaps, images)
            seen.append(mode.number)
    assert seen == looks


def test_errors_of_the_network_and_of_memory_keep_their_own_type():
    def gone(self, heatmap, images):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        of(gone).penalty(forward())


def test_functional_transforms_pass_the_checks():
    heatmaps, images = torch.randn(2, 4, 3, 8, 8)
    mine = of(squares)
    gradient = torch.func.grad(lambda h: mine.distance(h, images).sum())(heatmaps)
    torch.testing.assert_close(gradient, 2 * heatmaps / heatmaps[0].numel())
    mapped = torch.func.vmap(lambda h, i: mine.distance(h[None], i[None])[0])(heatmaps, images)
    torch.testing.assert_close(mapped, mine.distance(heatmaps, images))
    with pytest.raises(RegularizerError, match="without a graph"):
        torch.func.grad(lambda h: of(WRONG["detached"][0]).distance(h, images).sum())(heatmaps)
