"""Draw what each penalty pulls a heatmap towards, whatever the network.

    python docs/pull.py

Takes noise for a heatmap and descends each penalty by the heatmap itself, on a photograph that scikit-learn ships.
Writes docs/pull.png.
"""

import sys
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the script runs without being installed

import torch
import torch.nn.functional as F
from jaxtyping import Float
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor

from regularizers import REGULARIZERS
from regularizers._picture import descend
from sweeps.plots import STYLE, image
from trainer.evaluate.gallery import COLORS
from trainer.normalization import IMAGENET

STEPS = 300
# These end in a blank picture, so they are shown on the way there.
SHRINKING = {"datagrad": 30, "l2": 30, "spectreg": 30, "tv": 100, "tv_abs": 60, "tv_abs_unscaled": 60}
COLUMNS = 6


def photograph() -> Float[Tensor, "1 3 h w"]:
    """The flower, 96 pixels a side, normalized."""
    pixels = torch.tensor(load_sample_image("flower.jpg")).permute(2, 0, 1)[None, :, 20:404, 130:514]
    small = F.interpolate(pixels.float(), size=96, mode="area").round().to(torch.uint8)
    return IMAGENET.normalize(small)


def draw(out: Path, names: Iterable[str] = REGULARIZERS, steps: int = STEPS) -> None:
    """Write the picture as PNG: photograph and noise, then what each penalty of these names makes of the noise.

    Colors end at the 99th percentile of the noise, or of the heatmap where it has become larger.
    """
    picture = photograph()
    start = torch.randn(picture.shape, generator=torch.Generator().manual_seed(0))
    heatmaps = {"heatmap at first": start} | {
        name: descend(REGULARIZERS[name](), start, picture, min(steps, SHRINKING.get(name, steps)))
        for name in sorted(names)
        if REGULARIZERS[name].needs_heatmap
    }
    limits = {name: float(heatmap.sum(1).abs().quantile(0.99)) for name, heatmap in heatmaps.items()}
    lines = -(-(1 + len(heatmaps)) // COLUMNS)
    with rc_context(STYLE):
        figure = Figure(figsize=(1.1 * COLUMNS, 1.3 * lines))
        first, *cells = figure.subplots(lines, COLUMNS).flat
        first.imshow(IMAGENET.to_pixels(picture)[0].permute(1, 2, 0).numpy())
        first.set_title("image", fontsize=8)
        for cell, (name, heatmap) in zip(cells, heatmaps.items(), strict=False):
            limit = max(limits[name], limits["heatmap at first"])
            cell.imshow(heatmap[0].sum(0).numpy(), cmap=COLORS, vmin=-limit, vmax=limit)
            cell.set_title(name, fontsize=8)
        for cell in figure.axes:
            cell.set_axis_off()
    with Image.open(BytesIO(image(figure, "png"))) as drawn:
        drawn.convert("RGB").quantize(256).save(out, optimize=True)  # a third of the bytes


if __name__ == "__main__":
    draw(Path(__file__).with_name("pull.png"))
