"""What must hold for every regularizer, one function each; the tests and `python -m regularizers check` run the same.

A check returns what it found in a few words, or raises: `Failed` with what is wrong and the remedy, `NotApplicable`
with the reason.
"""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from regularizers._contract import RegularizerError, trains
from regularizers._finite_differences import DIRECTIONS, error_of_gradient
from regularizers._samples import EXAMPLES, batch, has_formula, network, pair, penalty, smallest_side
from regularizers.base import Regularizer
from regularizers.functional import Images

TOLERANCE = 1e-5  # of derivatives against finite differences in float64
RANDOM = (torch.randn, torch.rand, torch.randint, torch.randn_like, torch.rand_like, torch.bernoulli, torch.normal)
ROOM = "regularizers.functional"


class Failed(AssertionError):
    """The regularizer is wrong; the message says how and gives the remedy."""


class NotApplicable(Exception):
    """The check does not apply; the message says why."""


def per_example(regularizer: Regularizer) -> str:
    """Penalty `(b,)` on a network, in its precision and with a graph."""
    values = penalty(regularizer, network(regularizer, nn.Softplus), *batch(regularizer))
    if values.dtype != torch.float64:
        raise Failed(f"{values.dtype} from images of float64: make constants with heatmap.new_tensor or .to(heatmap)")
    if not values.isfinite().all():
        raise Failed(f"{_listed(values)} on ordinary images: guard divisions, roots and logarithms")
    return f"({len(values)},)" + (" with a graph" if values.requires_grad else "")


def independent(regularizer: Regularizer) -> str:
    """The value of an example is the same in a batch and alone, given the same random draws."""
    model, (images, labels) = network(regularizer, nn.Softplus), batch(regularizer)
    before = penalty(regularizer, model, images, labels).detach()
    others = torch.cat([images[:1], 3 * images[1:].flip(0) + 1])
    remedy = "reduce over dim=(1, 2, 3) only and take no statistic over the batch"
    beside = penalty(regularizer, model, others, labels)[0].detach()
    if not _close(beside, before[0]):
        raise Failed(f"{before[0]:.6g} became {beside:.6g} when the other examples changed: {remedy}")
    draws: list[Tensor] = []
    with _Recorded(draws):
        penalty(regularizer, model, images, labels)
    with _Replayed(draws.copy()):
        alone = penalty(regularizer, model, images[:1], labels[:1])[0].detach()
    random = not torch.equal(penalty(regularizer, model, images, labels, seed=1).detach(), before)
    if random and not draws:  # by a function that is not replayed
        return "draws numbers at random"
    if not _close(alone, before[0]):
        raise Failed(f"{before[0]:.6g} in a batch of {EXAMPLES}, {alone:.6g} alone: {remedy}")
    return "beside others as alone" + (", with the same random draws" if random else "")


class _Recorded(TorchFunctionMode):
    """Keeps what is drawn at random, in the order in which it is drawn."""

    def __init__(self, draws: list[Tensor]) -> None:
        super().__init__()
        self.draws = draws

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in RANDOM:
            self.draws.append(result)
        return result


class _Replayed(_Recorded):
    """Gives the first example what it drew in the batch."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in RANDOM and self.draws:
            return self.draws.pop(0)[:1]
        return func(*args, **(kwargs or {}))


def precisions(regularizer: Regularizer) -> str:
    """Finite value and gradient on ordinary images in float64, float32 and bfloat16; computed in float32 or better."""
    _require_distance(regularizer)
    heatmap, images = pair(regularizer)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        _finite(regularizer, heatmap.to(dtype), images.to(dtype), f"ordinary images in {_short(dtype)}")
        values = regularizer.distance(heatmap.to(dtype), images.to(dtype))
        expected = torch.float64 if dtype == torch.float64 else torch.float32
        if values.dtype != expected:
            raise Failed(
                f"{_short(values.dtype)} from {_short(dtype)}, expected {_short(expected)}: make constants with "
                "heatmap.new_tensor or .to(heatmap)"
            )
    return "float64, float32, bfloat16"


def identical_pair(regularizer: Regularizer) -> str:
    """Finite value and gradient where the heatmap is the image, and where it is a multiple."""
    _, images = pair(regularizer)
    for scale in (1.0, 2.0):
        _degenerate(regularizer, scale * images, images, "a heatmap equal to the image")
    return "value and gradient finite"


def constant_image(regularizer: Regularizer) -> str:
    """Finite value and gradient for an image of one color, and for one of one value."""
    heatmap, images = pair(regularizer)
    _degenerate(regularizer, heatmap, torch.full_like(images, 0.7), "a constant image")
    _degenerate(regularizer, heatmap, images[..., :1, :1].expand_as(images), "an image of one color")
    return "value and gradient finite"


def zero_heatmap(regularizer: Regularizer) -> str:
    """Finite value and gradient for a heatmap of zeros, and for a constant one."""
    heatmap, images = pair(regularizer)
    _degenerate(regularizer, torch.zeros_like(heatmap), images, "a zero heatmap")
    _degenerate(regularizer, torch.full_like(heatmap, 0.7), images, "a constant heatmap")
    return "value and gradient finite"


def bad_example(regularizer: Regularizer) -> str:
    """NaN or infinity in heatmap or image: the example counts 0, has no gradient and changes no bit of the others."""
    _require_distance(regularizer)
    heatmap, images = (values.float() for values in pair(regularizer))
    clean, clean_gradient = _value_and_gradient(regularizer, heatmap, images)
    others = [0, *range(2, EXAMPLES)]
    for bad in (float("nan"), float("inf"), -float("inf")):
        for where in ("heatmap", "image"):
            spoiled = [heatmap.clone(), images.clone()]
            spoiled[where == "image"][1, 1, 2, 3] = bad
            values, gradient = _value_and_gradient(regularizer, *spoiled)
            if values[1] != 0 or gradient[1].any():
                raise Failed(
                    f"{bad} in its {where}: the example counts {values[1]:g}, expected 0 and no gradient; leave "
                    "distance() as it is and override formula()"
                )
            if not (
                torch.equal(values[others], clean[others]) and torch.equal(gradient[others], clean_gradient[others])
            ):
                raise Failed(f"{bad} in the {where} of one example changed others: take no statistic over the batch")
    return "counts 0, touches no other"


def derivative(regularizer: Regularizer) -> str:
    """The gradient with respect to the heatmap equals finite differences of `distance`, in float64."""
    _require_penalty(regularizer)
    _require_distance(regularizer)
    heatmap, images = (values[:2] for values in pair(regularizer))
    error = error_of_gradient(lambda moved: regularizer.distance(moved, images).sum(), heatmap)
    if error is None:
        raise Failed(
            "is 0 everywhere: the value does not change with the heatmap; leave out sign(), round() and argmax"
        )
    if error > TOLERANCE:
        raise Failed(
            f"off by {error:.1g} (median of {DIRECTIONS} directions): something in formula is detached or rounded; "
            "compute every term from the heatmap with torch alone"
        )
    return f"median error against finite differences {error:.0e}"


def second_derivative(regularizer: Regularizer) -> str:
    """The gradient with respect to a smooth network's parameters equals finite differences, in float64."""
    _require_penalty(regularizer)
    model, (images, labels) = network(regularizer, nn.Softplus), batch(regularizer)

    def value(weight: Tensor) -> Tensor:
        moved = partial(functional_call, model, {"0.weight": weight})
        return penalty(regularizer, moved, images[:2], labels[:2]).sum()

    error = error_of_gradient(value, model.get_parameter("0.weight").detach())
    if error is None:
        raise Failed("is 0: the penalty trains nothing; compute it from the heatmap alone, without detach()")
    if error > TOLERANCE:
        raise Failed(f"off by {error:.1g} (median of {DIRECTIONS} directions): something on the way is detached")
    return f"median error against finite differences {error:.0e}"


def reaches_weights(regularizer: Regularizer) -> str:
    """The gradient with respect to the parameters of a smooth and of a ReLU network is finite and not 0."""
    _require_penalty(regularizer)
    for activation in (nn.Softplus, nn.ReLU):
        model = network(regularizer, activation)
        mean = penalty(regularizer, model, *batch(regularizer)).mean()
        gradients = torch.autograd.grad(mean, list(model.parameters()), allow_unused=True)
        size = sum(float(g.square().sum()) for g in gradients if g is not None)
        if not 0 < size < float("inf"):
            raise Failed(f"gradient by the weights of a {activation.__name__} network is {size:g}")
    return "of a smooth and of a ReLU network"


def ends_of_ranges(regularizer: Regularizer) -> str:
    """Finite value and gradient at both ends of the range of every setting."""
    settings = regularizer.settings()
    for name, own_range in settings.items():
        for end in (own_range.low, own_range.high):
            changed = dataclasses.replace(regularizer, **{name: end if own_range.whole else float(end)})
            try:
                per_example(changed)
                precisions(changed)
            except NotApplicable:
                pass
            except (Failed, RegularizerError) as error:
                found = str(error).removeprefix(f"regularizer {regularizer.name!r}: ")
                raise Failed(f"{name}={end:g}: {found}; or narrow its range") from None
    return ", ".join(settings) or "of the weight alone"


def image_size(regularizer: Regularizer) -> str:
    """Images that are too small end in an error that states the smallest size."""
    _require_penalty(regularizer)
    _require_distance(regularizer)
    smallest = smallest_side(regularizer)
    if smallest == 1:
        return "any"
    said = f"at least {smallest}x{smallest} pixels"
    try:
        regularizer.distance(*pair(regularizer, smallest - 1))
        reason = "it gives a value"
    except RegularizerError as error:
        if said in str(error):
            return f"from {smallest}x{smallest} pixels"
        reason = str(error).removeprefix(f"regularizer {regularizer.name!r}: ")
    raise Failed(
        f"on images smaller than {smallest}x{smallest}, {reason}; begin formula with require_size(heatmap, {smallest}, "
        f"'{regularizer.name}') of {ROOM}"
    )


CHECKS: dict[str, Callable[[Regularizer], str]] = {
    "one value per example": per_example,
    "independent of the other examples": independent,
    "ordinary images in three precisions": precisions,
    "heatmap equal to the image": identical_pair,
    "constant image": constant_image,
    "zero heatmap": zero_heatmap,
    "NaN or infinity in one example": bad_example,
    "gradient by the heatmap": derivative,
    "gradient by a network's weights": second_derivative,
    "gradient reaches the weights": reaches_weights,
    "ends of the settings' ranges": ends_of_ranges,
    "image size": image_size,
}


def run(regularizer: Regularizer) -> Iterator[tuple[str, str, str]]:
    """Every check's name, how it ended (`ok`, `FAILED` or `-`) and what it found.

    The first must pass for the others to mean anything; if it fails they are left out.
    """
    for name, check in CHECKS.items():
        try:
            ended, found = "ok", check(regularizer)
        except NotApplicable as reason:
            ended, found = "-", str(reason)
        except (Failed, RegularizerError) as error:
            ended, found = "FAILED", str(error)
        except (Exception, SystemExit) as error:  # of the backward pass
            ended, found = "FAILED", f"{type(error).__name__}: {error}".partition("\n")[0]
        yield name, ended, found
        if check is per_example and ended == "FAILED":
            return


def _require_penalty(regularizer: Regularizer) -> None:
    if not trains(regularizer):
        raise NotApplicable("its weight is always 0")


def _require_distance(regularizer: Regularizer) -> None:
    if not has_formula(regularizer):
        raise NotApplicable("it has a penalty() of its own and no formula()")


def _value_and_gradient(regularizer: Regularizer, heatmap: Images, images: Images) -> tuple[Tensor, Tensor]:
    heatmap = heatmap.clone().requires_grad_()
    values = regularizer.distance(heatmap, images)
    if not values.requires_grad:
        return values, torch.zeros_like(heatmap)
    return values.detach(), torch.autograd.grad(values.sum(), heatmap)[0]


def _degenerate(regularizer: Regularizer, heatmap: Images, images: Images, what: str) -> None:
    _require_distance(regularizer)
    for dtype in (torch.float64, torch.float32):
        _finite(regularizer, heatmap.to(dtype), images.to(dtype), what)


def _finite(regularizer: Regularizer, heatmap: Images, images: Images, what: str) -> None:
    """Fail unless value and gradient are finite; `distance` would count NaN as 0, so the formula itself is asked."""
    if type(regularizer).formula is not Regularizer.formula and heatmap.dtype.itemsize >= 4:
        values = regularizer.formula(heatmap, images)
        if not values.isfinite().all():
            raise Failed(
                f"the value for {what} is {_listed(values)}: divide by torch.where(x == 0, 1, x) and clamp what a "
                "logarithm takes"
            )
    _, gradient = _value_and_gradient(regularizer, heatmap, images)
    if not gradient.isfinite().all():
        raise Failed(
            f"the gradient for {what} is not finite: that of a root or norm at 0 is infinite; take safe_sqrt of {ROOM}"
        )


def _close(x: Tensor, y: Tensor) -> bool:
    return torch.allclose(x, y, rtol=1e-8, atol=1e-12)


def _listed(values: Tensor) -> str:
    return "[" + ", ".join(f"{value:.3g}" for value in values.tolist()) + "]"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
