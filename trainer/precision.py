"""Precisions: autocast for the model, float32 or more for what is computed from its output."""

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half precision as float32; float32 and float64 as they are."""
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which a model computes in a precision of `trainer.config.Precision`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
