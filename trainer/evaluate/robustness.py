"""Attacks on a classifier: FGSM, PGD and Square. Radii are in gray levels of 255, before normalization.

Attacks work on pixel fractions in [0, 1] and never leave that range. An example withstands an attack if it is
classified correctly as it is and at every point the attack visits, so a stronger attack can only find more.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from trainer.config import UsageError
from trainer.evaluate.classify import Classify
from trainer.normalization import Normalization

Pixels = Float[Tensor, "b 3 h w"]
Outcome = tuple[Pixels, Bool[Tensor, " b"]]
Logits = Float[Tensor, "b k"]
SHARPNESS = 6.0  # of 3, 6 and 12 the one that finds most
NORMS = {"linf": "Linf", "l2": "L2"}  # and how others write them


@runtime_checkable
class Attack(Protocol):
    """What finds images near the given ones that are misclassified."""

    @property
    def key(self) -> str:
        """Its name in metrics, all its settings in it."""
        ...

    def __call__(
        self,
        classify: Classify,
        images: Pixels,
        labels: Int[Tensor, " b"],
        generators: Sequence[torch.Generator],
        normalization: Normalization,
    ) -> Outcome:
        """Attack each example.

        Args:
            classify: takes normalized images.
            images: normalized.
            labels: true classes.
            generators: one for each example, on the CPU: what is drawn does not depend on the batch.
            normalization: normalization of the images; the attack's radius is in pixels.

        Returns:
            Normalized images, of each example the first that was misclassified, else the last one visited; and which
            examples withstood.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Gradient:
    """Projected gradient descent on a scale-free loss; its single-step form without random start is FGSM.

    The loss is `_soft_margins`.

    Args:
        norm: `linf` or `l2`, of the perturbation.
        eps: radius in gray levels.
        steps: gradient steps.
        step_size: length of a step in gray levels; 2.5·eps/steps by default.
        restarts: attempts, each from another random start.
        random_start: whether to begin somewhere in the ball (uniformly) or at the image.

    References:
        Madry, Makelov, Schmidt, Tsipras, Vladu: Towards Deep Learning Models Resistant to Adversarial Attacks. ICLR
        2018.
        Goodfellow, Shlens, Szegedy: Explaining and Harnessing Adversarial Examples. ICLR 2015.
    """

    norm: str = "linf"
    eps: float
    steps: int = 20
    step_size: float | None = None
    restarts: int = 1
    random_start: bool = True

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise UsageError(f"norm {self.norm!r} of an attack is unknown; choose from {', '.join(NORMS)}")
        for name in ("steps", "restarts"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)} of an attack: give a whole number of at least 1")
        if not 0 <= self.eps < math.inf:
            raise UsageError(f"eps={self.eps} of an attack: give gray levels, 0 or more")

    @property
    def step(self) -> float:
        """Length of one step in gray levels."""
        return 2.5 * self.eps / self.steps if self.step_size is None else self.step_size

    @property
    def key(self) -> str:
        """Its name in metrics, such as `pgd_linf_eps2_step0.25x20`: radius, step size, number of steps."""
        if self == fgsm(self.eps):
            return f"fgsm_linf_eps{self.eps:g}"
        tries = f"_restarts{self.restarts}" if self.restarts > 1 else ""
        start = "" if self.random_start else "_from_image"
        return f"pgd_{self.norm}_eps{self.eps:g}_step{self.step:g}x{self.steps}{tries}{start}"

    @property
    def passes(self) -> int:
        """Forward and backward passes over each example, at most."""
        return 1 + self.restarts * (2 * self.steps + 1)

    def __call__(
        self,
        classify: Classify,
        images: Pixels,
        labels: Int[Tensor, " b"],
        generators: Sequence[torch.Generator],
        normalization: Normalization,
    ) -> Outcome:
        clean, on_pixels = normalization.to_pixels(images), _on_pixels(classify, normalization)
        found, withstood = clean.clone(), torch.ones(len(images), dtype=torch.bool, device=images.device)
        _visit(on_pixels, clean, labels, torch.arange(len(images), device=images.device), found, withstood)
        for _ in range(self.restarts):
            adversarial = self._start(clean, generators)
            active = withstood.nonzero()[:, 0]
            for step in range(self.steps + 1):
                if not len(active):
                    break
                wants_gradient = step < self.steps
                here = adversarial[active].requires_grad_(wants_gradient)
                logits = _visit(on_pixels, here, labels, active, found, withstood)
                if wants_gradient:
                    (gradient,) = torch.autograd.grad(_soft_margins(logits, labels[active]).sum(), here)
                    moved = here.detach() - self.step / 255 * self._direction(gradient)
                    adversarial[active] = self._project(moved, clean[active])
                still = withstood[active]
                # Examples already lost are left out once they are half of the work.
                if 2 * int(still.sum()) <= len(active):
                    active = active[still]
        return normalization.from_pixels(found), withstood

    def _start(self, clean: Pixels, generators: Sequence[torch.Generator]) -> Pixels:
        if not self.random_start:
            return clean.clone()
        if self.norm == "linf":
            offsets = [2 * torch.rand(clean.shape[1:], generator=generator) - 1 for generator in generators]
        else:  # uniform in the ball: a direction, and a radius whose power d is uniform
            offsets = []
            for generator in generators:
                direction = torch.randn(clean.shape[1:], generator=generator)
                radius = torch.rand((), generator=generator) ** (1 / direction.numel())
                offsets.append(radius * direction / direction.norm())
        return (clean + self.eps / 255 * torch.stack(offsets).to(clean)).clamp(0, 1)

    def _direction(self, gradient: Pixels) -> Pixels:
        if self.norm == "linf":
            return gradient.sign()
        return gradient / _norms(gradient).clamp(min=torch.finfo(gradient.dtype).tiny)

    def _project(self, pixels: Pixels, clean: Pixels) -> Pixels:
        offset, radius = pixels - clean, self.eps / 255
        if self.norm == "linf":
            offset = offset.clamp(-radius, radius)
        else:
            offset = offset * (radius / _norms(offset).clamp(min=radius)) if radius else torch.zeros_like(offset)
        return (clean + offset).clamp(0, 1)


def fgsm(eps: float) -> Gradient:
    """The fast gradient sign method: one step of full length from the image itself."""
    return Gradient(eps=eps, steps=1, step_size=eps, random_start=False)


@dataclass(frozen=True, kw_only=True)
class Square:
    """ℓ∞ attack by random squares, kept where they lower the margin; it needs no gradient.

    A model that withstands gradient attacks better than this one masks its gradient.

    Args:
        eps: radius in gray levels.
        queries: squares tried on each example.

    References:
        Andriushchenko, Croce, Flammarion, Hein: Square Attack: a query-efficient black-box adversarial attack via
        random search. ECCV 2020, algorithms 1 and 2.
    """

    eps: float
    queries: int = 100

    @property
    def key(self) -> str:
        """Its name in metrics, such as `square_linf_eps2_x100`."""
        return f"square_linf_eps{self.eps:g}_x{self.queries}"

    def __call__(
        self,
        classify: Classify,
        images: Pixels,
        labels: Int[Tensor, " b"],
        generators: Sequence[torch.Generator],
        normalization: Normalization,
    ) -> Outcome:
        clean, radius = normalization.to_pixels(images), self.eps / 255
        on_pixels = _on_pixels(classify, normalization)
        (height, width), device = clean.shape[-2:], clean.device
        found, withstood = clean.clone(), torch.ones(len(images), dtype=torch.bool, device=device)
        all_examples = torch.arange(len(images), device=device)
        _visit(on_pixels, clean, labels, all_examples, found, withstood)
        stripes = torch.stack([_signs((3, 1, width), generator) for generator in generators]).to(clean)
        best = (clean + radius * stripes).clamp(0, 1)
        margins = _margins(_visit(on_pixels, best, labels, all_examples, found, withstood), labels)
        corners = torch.stack([torch.rand(self.queries, 2, generator=generator) for generator in generators]).to(device)
        signs = torch.stack([_signs((self.queries, 3, 1, 1), generator) for generator in generators]).to(clean)
        rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
        for query in range(self.queries):
            active = withstood.nonzero()[:, 0]
            if not len(active):
                break
            side = max(round(math.sqrt(_share(query, self.queries) * height * width)), 1)
            tall, wide = min(side, height), min(side, width)
            top = (corners[active, query, 0] * (height - tall + 1)).long()[:, None]
            left = (corners[active, query, 1] * (width - wide + 1)).long()[:, None]
            inside = ((rows >= top) & (rows < top + tall))[:, None, :, None]
            inside = inside & ((columns >= left) & (columns < left + wide))[:, None, None, :]
            attempt = torch.where(inside, clean[active] + radius * signs[active, query], best[active]).clamp(0, 1)
            lower = _margins(_visit(on_pixels, attempt, labels, active, found, withstood), labels[active])
            better = lower < margins[active]
            best[active[better]], margins[active[better]] = attempt[better], lower[better]
        return normalization.from_pixels(found), withstood


def _on_pixels(classify: Classify, normalization: Normalization) -> Classify:
    return lambda pixels: classify(normalization.from_pixels(pixels))


def _visit(
    on_pixels: Classify,
    pixels: Pixels,
    labels: Tensor,
    active: Tensor,
    found: Tensor,
    withstood: Tensor,
) -> Logits:
    """Classify a point of each active example, note errors, and return the logits."""
    with torch.set_grad_enabled(pixels.requires_grad):
        logits = on_pixels(pixels)
    right = logits.argmax(1) == labels[active]
    before = withstood[active]
    found[active[before]] = pixels.detach()[before]
    withstood[active] = before & right
    return logits


def _margins(logits: Logits, labels: Tensor) -> Float[Tensor, " b"]:
    """The true class's logit less the largest other."""
    own = logits.gather(1, labels[:, None])[:, 0]
    return own - logits.scatter(1, labels[:, None], -math.inf).amax(1)


def _soft_margins(logits: Logits, labels: Tensor) -> Float[Tensor, " b"]:
    """The same with a smooth maximum, of logits in units of how far the first is above the third.

    The unit is that of the DLR loss, a constant here. Multiplying the logits by any factor changes nothing, while the
    cross-entropy of large logits, and its gradient, round to zero. The cross-entropy's gradient is that of own logit
    less log-sum-exp of the others times a factor, so where nothing rounds this leads the same way; with `SHARPNESS` it
    finds as much, which the margin itself and DLR do not in few steps (docs/metrics.md).

    References:
        Croce, Hein: Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks.
        ICML 2020, section 4.
        Carlini, Wagner: Towards Evaluating the Robustness of Neural Networks. S&P 2017, section V.
    """
    constant = logits.detach()
    top = constant.topk(min(3, logits.shape[1])).values
    least = torch.finfo(logits.dtype).eps * constant.abs().amax(1)  # no difference that rounding makes is a unit
    unit = (top[:, 0] - top[:, -1]).maximum(least).clamp(min=math.sqrt(torch.finfo(logits.dtype).tiny))
    scaled = SHARPNESS * logits / unit[:, None]
    own = scaled.gather(1, labels[:, None])[:, 0]
    return unit * (own - scaled.scatter(1, labels[:, None], -math.inf).logsumexp(1))


def _share(query: int, queries: int) -> float:
    """Share of the image a square covers: 0.8, halved at the paper's points of the way."""
    milestones = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
    return 0.8 / 2 ** sum(query / queries > milestone for milestone in milestones)


def _signs(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randint(2, shape, generator=generator) * 2 - 1


def _norms(values: Pixels) -> Float[Tensor, "b 1 1 1"]:
    return values.flatten(1).norm(dim=1)[:, None, None, None]
