"""The reciprocal of a peak signal-to-noise ratio, which is what the PSNR family minimises."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

MIN_DECIBEL = 0.01  # 1/PSNR has a pole at 0 dB; no natural pair comes near, a binary complement sits on it


def reciprocal_psnr(mean_squared_error: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """1 / (10·log10(1/error)) for signals with peak 1.

    At the two ends, an error below the rounding of the data type (PSNR infinite) and one above
    -`MIN_DECIBEL` dB (PSNR zero or negative), the value is held and the gradient is zero.
    """
    lowest = torch.finfo(mean_squared_error.dtype).eps ** 2
    highest = 10 ** (-MIN_DECIBEL / 10)
    decibel = -10 / math.log(10) * mean_squared_error.clamp(lowest, highest).log()
    return torch.where(mean_squared_error == 0, 0.0, 1 / decibel)
