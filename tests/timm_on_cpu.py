"""Lets timm be imported beside a CPU torch; imported by the `conftest.py` of tests that use timm.

timm imports torchvision, whose wheel is made for CUDA: its compiled box operators, which nothing uses, are missing.
"""

import torch

try:
    import torchvision  # noqa: F401
except RuntimeError:
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "() -> ()")
