"""Pictures of heatmaps."""

import io
import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from trainer.evaluate import gallery


def test_a_gallery_shows_zero_as_white_and_signs_as_colors():
    heatmaps = torch.zeros(1, 3, 8, 8)
    heatmaps[:, :, :4] = 0.1
    heatmaps[:, :, 6:] = -0.2
    assert gallery.scaled(heatmaps)[0, :, 0].tolist() == pytest.approx([0.5] * 4 + [0, 0] + [-1, -1])
    png = gallery.draw_gallery(torch.full((1, 3, 8, 8), 0.5), heatmaps, [""], "")
    picture = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    middle = picture[:, int(0.43 * picture.shape[1])]  # down through the heatmap, the second of three columns
    signs = ["red" if r > b + 50 else "blue" if b > r + 50 else "white" for r, _, b in middle.tolist()]
    assert [sign for sign, _ in itertools.groupby(signs)][:5] == ["white", "red", "white", "blue", "white"]
