"""What every regularizer shares: the forward pass it reads, the heatmap and the guard against bad examples."""

import dataclasses
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regularizers._contract import RegularizerError, held, name_of

Number: TypeAlias = int | float


@dataclass(frozen=True)
class Tunable:
    """Default and search range of a field.

    Args:
        log: whether the range is searched on a logarithmic scale.
        whole: whether only whole numbers are meant.
    """

    default: Number
    low: Number
    high: Number
    log: bool = False
    whole: bool = False

    def holds(self, value: Number) -> bool:
        """Whether a value lies in the range."""
        return self.low <= value <= self.high and (not self.whole or float(value).is_integer())

    def __str__(self) -> str:
        """Such as `0.1 to 1`, or `whole numbers from 1 to 5`."""
        return f"{'whole numbers from ' if self.whole else ''}{self.low:g} to {self.high:g}"


def tunable(default: Number, low: Number, high: Number, *, log: bool = False) -> Any:
    """A dataclass field with its search range beside its default.

    The range of `weight` is one of strengths, multiples of the calibrated unit ‖∇θ CE‖ / ‖∇θ penalty‖ of the model at
    hand, always searched on a logarithmic scale, so one range fits every penalty and image size. The range of any other
    field is in the field's own units; for a field declared `int` only whole numbers are searched.

    Args:
        default: value used when none is given; of `weight` the absolute one.
        log: whether the range is searched on a logarithmic scale.
    """
    return dataclasses.field(default=default, metadata={"low": low, "high": high, "log": log})


UNNEEDED = "has needs_heatmap = False, but no penalty() that does without; leave needs_heatmap out"


class NoHeatmap(ValueError):
    """A score that has no gradient with respect to the images; the message says why."""


@dataclass(frozen=True)
class Forward:
    """One forward pass: what a penalty may look at.

    Args:
        images: model input `(b, c, h, w)`, normalized pixels; must require grad *before* the model is
            applied, otherwise `heatmap` has nothing to differentiate.
        labels: class indices `(b,)`.
        logits: model output `(b, k)`.
        generator: source of randomness for penalties that draw (spectreg); None is torch's global one.
        while_heatmap: entered while the heatmap is taken; a training loop that treats parts of the network
            differently in that pass (batch statistics as constants, say) gives its switch here.
    """

    images: Float[Tensor, "b c h w"]
    labels: Int[Tensor, " b"]
    logits: Float[Tensor, "b k"]
    generator: torch.Generator | None = None
    while_heatmap: Callable[[], AbstractContextManager[Any]] = nullcontext

    @property
    def losses(self) -> Float[Tensor, " b"]:
        """Cross-entropy of each example in nats, without label smoothing."""
        return F.cross_entropy(at_least_float32(self.logits), self.labels, reduction="none")

    @property
    def class_logits(self) -> Float[Tensor, " b"]:
        """The logit of each example's true class."""
        return at_least_float32(self.logits).gather(1, self.labels[:, None])[:, 0]

    @property
    def random_logits(self) -> Float[Tensor, " b"]:
        """Each example's logits times standard normal numbers of its own, summed."""
        logits, generator = at_least_float32(self.logits), self.generator
        # A CPU generator gives the same draws on every device; a device's own generator needs its device.
        device = logits.device if generator is None else generator.device
        projection = torch.randn(logits.shape, generator=generator, dtype=logits.dtype, device=device)
        return (logits * projection.to(logits)).sum(dim=1)

    def heatmap(self, score: Float[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
        """d(Σ score)/d images, itself differentiable with respect to the weights.

        Raises:
            NoHeatmap: a ValueError; if the images did not require grad when the model was applied, or the score does
                not depend on them.
        """
        if not self.images.requires_grad:
            raise NoHeatmap("images do not require grad; call images.requires_grad_() before the model")
        gradient = None
        if score.requires_grad:
            with self.while_heatmap():
                (gradient,) = torch.autograd.grad(score.sum(), self.images, create_graph=True, allow_unused=True)
        if gradient is None:
            raise NoHeatmap("the score does not depend on the images; compute it from forward.logits, without detach()")
        return at_least_float32(gradient)


@dataclass(frozen=True, kw_only=True)
class Regularizer:
    """A penalty on the input gradient of a score.

    Subclasses define their own `weight` field, `formula` and, where the score is not the true class's logit,
    `score`. Further fields declared `tunable` are searched, too.
    """

    name: ClassVar[str]
    needs_heatmap: ClassVar[bool] = True
    weight: float = tunable(0.5, 0.1, 1000.0)

    def __post_init__(self) -> None:
        if not 0 <= self.weight < float("inf"):
            raise ValueError(f"weight={self.weight} of {type(self).__name__}: give a finite number >= 0")
        for name in self.settings():
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name}={getattr(self, name)} of {type(self).__name__}: give a finite number")

    def penalty(self, forward: Forward) -> Float[Tensor, " b"]:
        """Penalty of each example; the training step takes the mean and multiplies by `weight`.

        Raises:
            RegularizerError: as `distance` does, and likewise for `score`; if that gives no heatmap.
        """
        if not self.needs_heatmap:
            raise RegularizerError(f"regularizer {name_of(self)!r}: {UNNEEDED}")
        score = held(self, "score", (forward,), forward.logits, looked_at=(forward.logits, forward.images))
        try:
            heatmap, images = forward.heatmap(score), forward.images.detach()
        except NoHeatmap as error:
            raise RegularizerError(f"regularizer {name_of(self)!r}: {error}") from error
        return held(self, "distance", (heatmap, images), heatmap, looked_at=(heatmap, images))

    def score(self, forward: Forward) -> Float[Tensor, " b"]:
        """The score whose gradient is the heatmap: the logit of the true class."""
        return forward.class_logits

    def distance(self, heatmap: Float[Tensor, "b c h w"], images: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
        """The penalty as a pure function of heatmap and image, computed in float32 or better.

        An example with a NaN or an infinity in either, or whose value the data type cannot hold, counts 0 and has no
        gradient; the others are not affected. NaN or infinity for every example of ordinary size is an error. Detecting
        it makes the host wait for the values: on a CPU always, on an accelerator at this object's first call only.
        torch.compile leaves all these checks out.

        Raises:
            RegularizerError: a ValueError; if `formula` raises, or returns anything but real numbers `(b,)` that carry
                the heatmap's graph; if the images are smaller than the penalty's window (the message names the
                smallest size).
        """
        heatmap, images = at_least_float32(heatmap), at_least_float32(images)
        finite = finite_examples(heatmap) & finite_examples(images)
        kept = finite[:, None, None, None]
        pair = torch.where(kept, heatmap, 0.0), torch.where(kept, images, 0.0)
        values = held(self, "formula", pair, heatmap, looked_at=pair)
        return torch.where(finite & values.isfinite(), values, 0.0)

    def formula(self, heatmap: Float[Tensor, "b c h w"], images: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
        """`distance` of finite examples, as stated in the docstring of the class."""
        raise NotImplementedError

    @classmethod
    def strengths(cls) -> tuple[float, float]:
        """Search range of `weight` in calibrated units (see `tunable`)."""
        weight = _tunables(cls)["weight"]
        return weight.low, weight.high

    @classmethod
    def settings(cls) -> dict[str, Tunable]:
        """Default and search range of every tunable field but `weight`, by its name."""
        return {name: found for name, found in _tunables(cls).items() if name != "weight"}


def _tunables(regularizer: type[Regularizer]) -> dict[str, Tunable]:
    return {
        field.name: Tunable(cast(Number, field.default), **field.metadata, whole=field.type in (int, "int"))
        for field in dataclasses.fields(regularizer)
        if "low" in field.metadata
    }


def checked(regularizer: Regularizer, forward: Forward) -> Float[Tensor, " b"]:
    """The penalty of each example, held to the contract even where the class overrides `penalty` itself.

    Raises:
        RegularizerError: if the values or the code are wrong, as `Regularizer.distance` says.
    """
    if type(regularizer).penalty is Regularizer.penalty:  # checks itself, and lets errors of the network pass
        return regularizer.penalty(forward)
    return held(regularizer, "penalty", (forward,), forward.logits, looked_at=(forward.logits, forward.images))


def finite_examples(values: Float[Tensor, "b ..."]) -> Bool[Tensor, " b"]:
    """Which examples hold neither NaN nor infinity."""
    low, high = values.detach().flatten(1).aminmax(dim=1)  # NaN wins in both; one pass over the values
    return low.isfinite() & high.isfinite()


def at_least_float32(values: Tensor) -> Tensor:
    """Half-precision numbers as float32: penalties square and subtract, for which bf16 is too coarse."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
