"""One training step: cross-entropy plus weighted penalty, one backward pass."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from regularizers import Forward, Regularizer, RegularizerError
from regularizers.base import at_least_float32, checked, finite_examples
from trainer.config import UsageError
from trainer.data import Batch
from trainer.double_backprop import DoubleBackprop, refuse_once_differentiable, refuse_unseen_batch_norm
from trainer.precision import autocast


@dataclass(frozen=True)
class StepResult:
    """Scalars of one step over this worker's batch; only `loss` carries a gradient.

    Examples with a NaN or an infinity among their pixels are left out of loss and penalty and counted in `nonfinite`.
    """

    loss: Tensor
    penalty: Tensor
    cross_entropy: Tensor
    nonfinite: Tensor


class RegularizedLoss(nn.Module):
    """Mean cross-entropy + weight × mean penalty of a batch, as a module that DDP and torch.compile can wrap.

    Args:
        model: the classifier, its modes set by `set_mode`.
        label_smoothing: label smoothing of the cross-entropy (the penalty's score has none).
        batch_norm: `frozen`, `stop` or `flow`.
        precision: `bfloat16` applies the model under autocast; loss, heatmap and penalty stay in float32.
        double_backprop: `fast` (`trainer.double_backprop`), or `pytorch` for PyTorch's functions alone.
    """

    def __init__(
        self,
        model: nn.Module,
        regularizer: Regularizer,
        *,
        label_smoothing: float = 0.0,
        batch_norm: str = "frozen",
        precision: str = "float32",
        double_backprop: str = "fast",
    ) -> None:
        super().__init__()
        self.model, self.regularizer = model, regularizer
        self.label_smoothing, self.batch_norm, self.precision = label_smoothing, batch_norm, precision
        self.double_backprop = double_backprop
        scripted = any(isinstance(module, torch.jit.ScriptModule) for module in model.modules())
        self._looks_for_batch_norm = batch_norm == "stop" or (batch_norm == "frozen" and scripted)

    def forward(
        self, images: Float[Tensor, "b c h w"], labels: Int[Tensor, " b"], generator: torch.Generator | None = None
    ) -> StepResult:
        finite, images = blank_broken(images)
        penalties, logits = self.penalties(images, labels, generator)
        logits = at_least_float32(logits)
        losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=self.label_smoothing)
        # Divided by all examples: leaving one out does not change what the others weigh.
        cross_entropy, penalty = (losses * finite).mean(), (penalties * finite).mean()
        loss = cross_entropy + self.regularizer.weight * penalty
        return StepResult(loss, penalty.detach(), cross_entropy.detach(), (~finite).sum())

    def penalties(
        self, images: Float[Tensor, "b c h w"], labels: Int[Tensor, " b"], generator: torch.Generator | None
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, "b k"]]:
        """Penalty and logits of each example.

        Raises:
            UsageError: if the regularizer breaks its contract.
        """
        forward = self.forward_pass(images, labels, generator)
        return penalty_of(self.regularizer, forward), forward.logits

    def forward_pass(
        self, images: Float[Tensor, "b c h w"], labels: Int[Tensor, " b"], generator: torch.Generator | None = None
    ) -> Forward:
        """Apply the model; the images carry a gradient only where the regularizer looks at it."""
        if not self.regularizer.needs_heatmap:
            return Forward(images, labels, self._logits(images))
        images = images.detach().requires_grad_()
        functions = DoubleBackprop(self.batch_norm, fast=self.double_backprop == "fast")
        # Fused attention has no second derivative.
        with functions, sdpa_kernel(SDPBackend.MATH):
            logits = self._logits(images.clone())  # a model whose first operation is in place may not change a leaf
        if self._looks_for_batch_norm:
            refuse_unseen_batch_norm(logits, self.batch_norm)
        return Forward(images, labels, logits, generator, while_heatmap=functions.taking_heatmap)

    def _logits(self, images: Tensor) -> Tensor:
        with autocast(images.device, self.precision):
            return self.model(images)


class CompiledLoss(RegularizedLoss):
    """The same loss translated by torch.compile, input gradient included; for frozen batch norm.

    Compiled code cannot be differentiated twice. Here the first gradient is taken inside it by `torch.func.grad`, so
    that only one is left to take outside.

    Args:
        model: the classifier; its statistics must not change.

    Raises:
        UsageError: if the regularizer overrides `penalty`; by its first call, if the model cannot be compiled or the
            regularizer breaks its contract.
    """

    def __init__(
        self, model: nn.Module, regularizer: Regularizer, *, backend: str = "inductor", **options: Any
    ) -> None:
        if regularizer.needs_heatmap and type(regularizer).penalty is not Regularizer.penalty:
            raise UsageError(
                f"regularizer {regularizer.name!r} has a penalty() of its own, which `compile` would not use; give "
                "it score() and formula(), or leave `compile` out"
            )
        super().__init__(model, regularizer, **options)
        self._tried = False
        self._compiled = torch.compile(super().forward, backend=backend, fullgraph=True)

    def forward(
        self, images: Float[Tensor, "b c h w"], labels: Int[Tensor, " b"], generator: torch.Generator | None = None
    ) -> StepResult:
        if not self._tried:  # compiled code has none of the checks; two images are enough for them
            RegularizedLoss.penalties(self, images[:2], labels[:2], generator)
            self._tried = True
        if generator is not None:  # compiled code draws from torch's own
            torch.manual_seed(generator.initial_seed())
        try:
            return self._compiled(images, labels)
        except torch._dynamo.exc.TorchDynamoException as error:  # named here, as its import takes a second
            reason = str(error).strip().partition("\n")[0]
            raise UsageError(f"torch.compile cannot translate this model ({reason}); leave `compile` out") from error

    def penalties(
        self, images: Float[Tensor, "b c h w"], labels: Int[Tensor, " b"], generator: torch.Generator | None
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, "b k"]]:
        if not self.regularizer.needs_heatmap:
            return super().penalties(images, labels, None)

        def score(images: Tensor) -> tuple[Tensor, Tensor]:
            logits = self._logits(images)
            return self.regularizer.score(Forward(images, labels, logits)).sum(), logits

        with sdpa_kernel(SDPBackend.MATH):
            heatmap, logits = torch.func.grad(score, has_aux=True)(images)
        return self.regularizer.distance(heatmap, images), logits


def blank_broken(images: Float[Tensor, "b c h w"]) -> tuple[Bool[Tensor, " b"], Float[Tensor, "b c h w"]]:
    """Which images are finite, and all of them with zeros in the place of the others."""
    finite = finite_examples(images)
    return finite, torch.where(finite[:, None, None, None], images, 0.0)


def penalty_of(regularizer: Regularizer, forward: Forward) -> Float[Tensor, " b"]:
    """The penalty of each example.

    Raises:
        UsageError: if the regularizer breaks its contract, naming it.
        RuntimeError: if the model cannot be differentiated twice.
    """
    try:
        penalties = checked(regularizer, forward)
    except RegularizerError as error:
        raise UsageError(str(error)) from error
    if regularizer.needs_heatmap:
        refuse_once_differentiable(penalties)
    return penalties


def set_mode(model: nn.Module, batch_norm: str) -> None:
    """Training mode; under `frozen` batch norm uses and keeps its running statistics."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) or _scripted_batch_norm(module):
            module.train(batch_norm != "frozen")


def _scripted_batch_norm(module: nn.Module) -> bool:
    """Whether torch.jit.script made it of a batch norm: its class is gone, its statistics are there."""
    scripted = isinstance(module, torch.jit.ScriptModule) and hasattr(module, "running_mean")
    return scripted and not str(module.original_name).startswith("InstanceNorm")


def train_step(
    loss: nn.Module,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    *,
    clip_norm: float | None = None,
    generator: torch.Generator | None = None,
) -> StepResult:
    """One step of the weights down the gradient of `loss`, a `RegularizedLoss`; under DDP the mean over workers.

    Args:
        loss: module that takes images, labels and generator.
        clip_norm: largest norm of the gradient of all weights; None leaves it as it is.
        generator: generator of the penalty's random draws.
    """
    result = loss(batch.images, batch.labels, generator)
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    optimizer.zero_grad()
    result.loss.backward(inputs=parameters)  # the images are leaves too, and their gradient is not needed again
    if clip_norm is not None:
        nn.utils.clip_grad_norm_(parameters, clip_norm)
    optimizer.step()
    return result
