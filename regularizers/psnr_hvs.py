"""Reciprocal of a spatial PSNR-HVS of heatmap against image."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from regularizers.base import Regularizer, tunable
from regularizers.functional import Images, blocks, minmax_scale, reciprocal_psnr, safe_sqrt, sobel


@dataclass(frozen=True, kw_only=True)
class PsnrHvs(Regularizer):
    """1 / PSNR-HVS built from error, block structure and edges, per color plane.

    distance = 1 / (10·log10(1/D)), D = mean over planes of `error`·E + `structure`·S + `edge`·G, of the pair scaled to
    [0, 1]: E = mean squared error, S = mean over 8x8 blocks of ½(Δmean)² + ¼(Δmax)² + ¼(Δmin)², G = mean of (|Sobel
    heatmap| - |Sobel image|)² with Sobel/4. Pulls the heatmap towards the image in value, block statistics and edges.

    Known from the paper's abstract: spatial domain, RGB, three parts (error sensitivity, structural
    distortion, edge distortion) combined empirically into a modified PSNR. **Ours**, since neither formula
    nor weights could be had: the block statistics, the edge operator, the combination and its equal weights.

    References:
        Gupta et al.: IEEE document 6146669 (abstract and keywords), 2011.
    """

    weight: float = tunable(0.5, 0.1, 1000.0)
    error: float = tunable(1 / 3, 0.0, 1.0)
    structure: float = tunable(1 / 3, 0.0, 1.0)
    edge: float = tunable(1 / 3, 0.0, 1.0)

    def formula(self, heatmap: Images, images: Images) -> Float[Tensor, " b"]:
        x, y = minmax_scale(heatmap), minmax_scale(images)
        a, b = blocks(x).flatten(3), blocks(y).flatten(3)
        error = (x - y).square().mean(dim=(1, 2, 3))
        edge = (_edge_strength(x) - _edge_strength(y)).square().mean(dim=(1, 2, 3))
        structure = (
            (a.mean(dim=3) - b.mean(dim=3)).square() / 2
            + (a.amax(dim=3) - b.amax(dim=3)).square() / 4
            + (a.amin(dim=3) - b.amin(dim=3)).square() / 4
        ).mean(dim=(1, 2))
        return reciprocal_psnr(self.error * error + self.structure * structure + self.edge * edge)


def _edge_strength(images: Images) -> Images:
    down, along = sobel(images)
    return safe_sqrt(down.square() + along.square()) / 4
