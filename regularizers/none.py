"""No penalty: the baseline every sweep compares with."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from regularizers.base import Forward, Regularizer, tunable
from regularizers.functional import Images


@dataclass(frozen=True, kw_only=True)
class None_(Regularizer):
    """Plain finetuning.

    distance = 0, and no input gradient is taken. Pulls the heatmap nowhere.

    References:
        google-research/optimizing_interpretability, the baseline.
    """

    weight: float = tunable(0.0, 0.0, 0.0)

    needs_heatmap: ClassVar[bool] = False

    def penalty(self, forward: Forward) -> Float[Tensor, " b"]:
        return torch.zeros_like(forward.class_logits)

    def formula(self, heatmap: Images, images: Images) -> Float[Tensor, " b"]:
        return heatmap.new_zeros(len(heatmap))
