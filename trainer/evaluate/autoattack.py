"""The standard ensemble of attacks for final figures; needs the extra `autoattack`."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor, nn

from trainer.config import UsageError
from trainer.evaluate.classify import Classify
from trainer.evaluate.robustness import NORMS, Outcome, Pixels
from trainer.normalization import Normalization


@dataclass(frozen=True, kw_only=True)
class AutoAttack:
    """APGD on two losses, FAB and Square, each on what the others left: several hundred times the cost of PGD.

    Args:
        eps: radius in gray levels.
        norm: `linf` or `l2`.

    Raises:
        UsageError: if the library is not installed.

    References:
        Croce, Hein: Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks.
        ICML 2020.
    """

    eps: float
    norm: str = "linf"

    def __post_init__(self) -> None:
        try:
            import pyautoattack  # noqa: F401
        except ImportError:
            raise UsageError("AutoAttack needs a library: pip install 'heatmap-sweeps[autoattack]'") from None

    @property
    def key(self) -> str:
        """Its name in metrics, such as `autoattack_linf_eps2`."""
        return f"autoattack_{self.norm}_eps{self.eps:g}"

    def __call__(
        self,
        classify: Classify,
        images: Pixels,
        labels: Int[Tensor, " b"],
        generators: Sequence[torch.Generator],
        normalization: Normalization,
    ) -> Outcome:
        # Its draws depend on the batch, whatever the generators.
        import pyautoattack

        pixels = normalization.to_pixels(images)
        attack = pyautoattack.AutoAttack(
            _OnPixels(classify, normalization), norm=NORMS[self.norm], eps=self.eps / 255, seed=0, device=images.device
        )
        attack.verbose = False
        with torch.no_grad():
            others = classify(images[:1]).shape[1] - 1
        attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = min(9, others)
        adversarial, guesses = attack.run_standard_evaluation(pixels, labels, batch_size=len(pixels))
        return normalization.from_pixels(adversarial), guesses == labels


class _OnPixels(nn.Module):
    """The classifier as that library wants it: a module on pixel fractions."""

    def __init__(self, classify: Classify, normalization: Normalization) -> None:
        super().__init__()
        self.classify, self.normalization = classify, normalization

    def forward(self, pixels: Tensor) -> Tensor:
        return self.classify(self.normalization.from_pixels(pixels))
