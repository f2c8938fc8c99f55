"""Image operations that several regularizers share; each is finite where its textbook form divides by zero."""

import torch
from jaxtyping import Float
from torch import Tensor

Images = Float[Tensor, "b c h w"]
Planes = Float[Tensor, "... h w"]


def normalize(images: Images) -> Images:
    """Each example to [0, 1] by its minimum and maximum over channels, rows and columns together.

    The gradient flows through minimum and maximum, ties share it evenly. A constant example becomes 0
    everywhere, with zero gradient.
    """
    low = images.amin(dim=(1, 2, 3), keepdim=True)
    span = images.amax(dim=(1, 2, 3), keepdim=True) - low
    constant = span == 0
    return torch.where(constant, 0.0, (images - low) / torch.where(constant, 1.0, span))


def differences(planes: Planes) -> tuple[Float[Tensor, "... h-1 w"], Float[Tensor, "... h w-1"]]:
    """Forward differences down the rows `(…, h-1, w)` and along the columns `(…, h, w-1)`."""
    return planes.diff(dim=-2), planes.diff(dim=-1)


def total_variation(planes: Images) -> Float[Tensor, " b"]:
    """Sum of absolute forward differences over everything but the batch."""
    down, along = differences(planes)
    return down.abs().sum(dim=(1, 2, 3)) + along.abs().sum(dim=(1, 2, 3))


def sobel(planes: Planes) -> tuple[Planes, Planes]:
    """Sobel responses (vertical, horizontal) with kernels ±1, ±2, ±1 unscaled and mirrored borders.

    Written with slices: the backward pass of reflect padding has no deterministic CUDA kernel.

    Raises:
        ValueError: if a side is shorter than 2 pixels (nothing to mirror).
    """
    require_size(planes, 2, "Sobel edges")
    rows = torch.cat([planes[..., 1:2, :], planes, planes[..., -2:-1, :]], dim=-2)
    padded = torch.cat([rows[..., 1:2], rows, rows[..., -2:-1]], dim=-1)
    smooth_along = padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]
    smooth_down = padded[..., :-2, :] + 2 * padded[..., 1:-1, :] + padded[..., 2:, :]
    return (
        smooth_along[..., 2:, :] - smooth_along[..., :-2, :],
        smooth_down[..., 2:] - smooth_down[..., :-2],
    )


def safe_sqrt(values: Tensor) -> Tensor:
    """Square root whose gradient at 0 is 0 instead of infinite."""
    zero = values == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, values).sqrt())


def require_size(images: Tensor, smallest: int, what: str) -> None:
    """Raise a ValueError that names the smallest side `what` can work on."""
    height, width = images.shape[-2:]
    if min(height, width) < smallest:
        raise ValueError(f"{what} needs images of at least {smallest}x{smallest} pixels, got {height}x{width}")
