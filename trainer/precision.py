"""Precisions of a model; what is computed from its output is in float32 or better (`at_least_float32`)."""

import torch


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which a model computes in a precision of `trainer.config.Precision`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
