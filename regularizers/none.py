"""No penalty: the baseline every sweep compares with."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from regularizers._images import Images
from regularizers.base import Forward, Regularizer, tunable


@dataclass(frozen=True, kw_only=True)
class Baseline(Regularizer):
    """Plain finetuning.

    distance = 0, and no input gradient is taken. Pulls the heatmap nowhere.

    References:
        The baseline of google-research/optimizing_interpretability.
    """

    weight: float = tunable(0.0, 0.0, 0.0)

    needs_heatmap: ClassVar[bool] = False

    def penalty(self, forward: Forward) -> Float[Tensor, " b"]:
        return forward.losses.new_zeros(forward.losses.shape)

    def formula(self, heatmap: Images, images: Images) -> Float[Tensor, " b"]:
        return heatmap.new_zeros(len(heatmap))
