"""What every regularizer shares: the forward pass it reads and the two kinds of penalty."""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def tunable(default: float, low: float, high: float) -> Any:
    """A dataclass field with its search range beside its default.

    Args:
        default: the absolute weight used when none is given.
        low: lower end of the search range, as a strength: multiples of the calibrated unit
            ‖∇θ CE‖ / ‖∇θ penalty‖ of the model at hand, so that one range fits every penalty and image size.
        high: upper end, likewise.
    """
    return dataclasses.field(default=default, metadata={"low": low, "high": high})


@dataclass(frozen=True)
class Forward:
    """One forward pass: what a penalty may look at.

    Args:
        images: model input `(b, c, h, w)`, standardised pixels; must require grad *before* the model is
            applied, otherwise `heatmap` has nothing to differentiate.
        labels: class indices `(b,)`.
        logits: model output `(b, k)`.
        generator: source of randomness for penalties that draw (spectreg); None is torch's global one.
    """

    images: Float[Tensor, "b c h w"]
    labels: Int[Tensor, " b"]
    logits: Float[Tensor, "b k"]
    generator: torch.Generator | None = None

    @property
    def losses(self) -> Float[Tensor, " b"]:
        """Cross-entropy of each example in nats, without label smoothing."""
        return F.cross_entropy(_at_least_float32(self.logits), self.labels, reduction="none")

    @property
    def class_logits(self) -> Float[Tensor, " b"]:
        """The logit of each example's true class."""
        return _at_least_float32(self.logits).gather(1, self.labels[:, None])[:, 0]

    def heatmap(self, score: Float[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
        """d(Σ score)/d images, itself differentiable with respect to the weights.

        Raises:
            ValueError: if the images did not require grad when the model was applied.
        """
        if not self.images.requires_grad:
            raise ValueError("images do not require grad; call images.requires_grad_() before the model")
        (gradient,) = torch.autograd.grad(score.sum(), self.images, create_graph=True)
        return _at_least_float32(gradient)


@dataclass(frozen=True, kw_only=True)
class Regularizer:
    """A penalty on the input gradient. Subclasses define `penalty` and their own `weight` field."""

    name: ClassVar[str]
    needs_heatmap: ClassVar[bool] = True
    weight: float = tunable(0.5, 0.1, 1000.0)

    def __post_init__(self) -> None:
        if not 0 <= self.weight < float("inf"):
            raise ValueError(f"weight={self.weight} of {type(self).__name__}: give a finite number >= 0")

    def penalty(self, forward: Forward) -> Float[Tensor, " b"]:
        """Penalty of each example; the training step takes the mean and multiplies by `weight`."""
        raise NotImplementedError

    @classmethod
    def strengths(cls) -> tuple[float, float]:
        """Search range of `weight` in calibrated units (see `tunable`)."""
        weight = next(field for field in dataclasses.fields(cls) if field.name == "weight")
        return weight.metadata["low"], weight.metadata["high"]


@dataclass(frozen=True, kw_only=True)
class HeatmapRegularizer(Regularizer):
    """A penalty on the heatmap of the true class's logit, perhaps against the image."""

    def distance(self, heatmap: Float[Tensor, "b c h w"], images: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
        """The penalty as a pure function of heatmap and image."""
        raise NotImplementedError

    def penalty(self, forward: Forward) -> Float[Tensor, " b"]:
        heatmap = forward.heatmap(forward.class_logits)
        return self.distance(heatmap, forward.images.detach().to(heatmap.dtype))


def _at_least_float32(values: Tensor) -> Tensor:
    """Half-precision numbers as float32: penalties square and subtract, which bf16 cannot carry."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
