"""Draw what a penalty pulls a heatmap towards, independent of any network."""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from regularizers._samples import usual_side
from regularizers.base import Regularizer
from regularizers.functional import Images

SIDE = 64  # pixels
RATE = 0.02  # of Adam, in deviations of the noise that the descent begins with
SHOWN = (0, 30, 300)  # steps; penalties that shrink the heatmap end in a blank one, so it is shown on the way there


def descend(regularizer: Regularizer, start: Images, images: Images, steps: int) -> Images:
    """The heatmap after a descent of the penalty from `start`."""
    heatmap = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([heatmap], lr=RATE)
    for _ in range(steps):
        optimizer.zero_grad()
        regularizer.distance(heatmap, images).sum().backward()
        optimizer.step()
    return heatmap.detach()


def scene(side: int) -> Float[Tensor, "1 3 side side"]:
    """A normalized image of a sky, a striped ground, a disc and a square: edges, texture and smooth parts."""
    down, along = torch.meshgrid(torch.linspace(0, 1, side), torch.linspace(0, 1, side), indexing="ij")
    colors = torch.stack([0.3 + 0.4 * down, 0.5 + 0.3 * down, 0.9 - 0.3 * down])
    ground = 0.5 + 0.3 * torch.sin(40 * along + 20 * down)
    colors = torch.where(down > 0.65, ground * torch.tensor([0.5, 0.8, 0.4])[:, None, None], colors)
    disc = (down - 0.3).square() + (along - 0.7).square() < 0.03
    colors = torch.where(disc, torch.tensor([1.0, 0.85, 0.2])[:, None, None], colors)
    square = ((down - 0.6).abs() < 0.15) & ((along - 0.3).abs() < 0.15)
    colors = torch.where(square, torch.tensor([0.8, 0.2, 0.15])[:, None, None], colors)
    return ((colors - colors.mean()) / colors.std())[None]


def draw(regularizer: Regularizer, out: Path) -> None:
    """Write a PNG: an image, noise taken for its heatmap, and that heatmap during the descent of the penalty.

    Shown is the sum over channels; blue is negative, red positive, and colors end at the 99th percentile of the noise,
    or of the heatmap if it has become larger.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.
        OSError: if the file cannot be written.
    """
    from matplotlib.figure import Figure  # the regularizers themselves do without

    images = scene(max(SIDE, usual_side(regularizer)))
    start = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    figure = Figure(figsize=(2 * (1 + len(SHOWN)), 2.3), layout="constrained")
    first, *cells = figure.subplots(1, 1 + len(SHOWN))
    first.imshow(((images - images.min()) / (images.max() - images.min()))[0].permute(1, 2, 0).numpy())
    first.set_title("image", fontsize=8)
    for cell, steps in zip(cells, SHOWN, strict=True):
        heatmap = descend(regularizer, start, images, steps)
        limit = max(float(values.sum(1).abs().quantile(0.99)) for values in (start, heatmap))
        cell.imshow(heatmap[0].sum(0).numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit)
        cell.set_title(f"{regularizer.name}, {steps} steps" if steps else "heatmap at first: noise", fontsize=8)
    for cell in figure.axes:
        cell.set_axis_off()
    figure.savefig(out, format="png", dpi=150)
