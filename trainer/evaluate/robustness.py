"""Adversarial examples by projected gradient descent."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from trainer.data import MEAN, STD


def pgd(
    model: nn.Module,
    images: Float[Tensor, "b 3 h w"],
    labels: Int[Tensor, " b"],
    *,
    eps: float,
    steps: int,
    start: Float[Tensor, "b 3 h w"],
) -> Float[Tensor, "b 3 h w"]:
    """ℓ∞ attack with random start and step size 2.5·eps/steps.

    Args:
        model: classifier in evaluation mode.
        images: standardised images of pixel fractions in [0, 1]; the result stays inside that range too.
        labels: true classes.
        eps: radius in pixel fractions of 1, before standardisation.
        steps: gradient steps.
        start: uniform numbers in [0, 1): where in the box around each image the attack begins.

    References:
        Madry, Makelov, Schmidt, Tsipras, Vladu: Towards Deep Learning Models Resistant to Adversarial
        Attacks. ICLR 2018.
    """
    mean = images.new_tensor(MEAN)[:, None, None]
    std = images.new_tensor(STD)[:, None, None]
    radius, low, high = eps / std, -mean / std, (1 - mean) / std
    lower, upper = (images - radius).maximum(low), (images + radius).minimum(high)
    adversarial = (images + radius * (2 * start - 1)).clamp(lower, upper)
    for _ in range(steps):
        adversarial.requires_grad_()
        loss = F.cross_entropy(model(adversarial), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, adversarial)
        step = (2.5 * eps / steps) / std * gradient.sign()
        adversarial = (adversarial.detach() + step).clamp(lower, upper)
    return adversarial
