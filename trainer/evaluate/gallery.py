"""Pictures of heatmaps: the same images for every model, so that galleries can be laid side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import torch
from jaxtyping import Float, Int
from torch import Tensor

from regularizers.base import finite_examples
from trainer.cache import ShardCache
from trainer.config import Trial
from trainer.data import Batch, LoaderOptions, eval_loader
from trainer.evaluate.classify import classifier
from trainer.evaluate.heatmaps import heatmap
from trainer.evaluate.subject import Subject
from trainer.models import build_model
from trainer.preprocess import Transform
from trainer.shards import Shards, evaluation_splits

COLORS = "RdBu_r"  # matplotlib's name: red raises the class's score, blue lowers it, white is zero
IMAGES = 4  # of a trial's gallery
PERCENTILE = 99.0  # of |heatmap|: what is beyond has the end's color


@dataclass(frozen=True)
class Explained:
    """Images with a model's heatmaps and guesses.

    Args:
        pixels: the images, pixel fractions in [0, 1].
        labels: true classes.
        heatmaps: signed input gradients of the true class's logit.
        guesses: the model's classes.
        confidences: softmax of those, in [0, 1].
    """

    pixels: Float[Tensor, "b 3 h w"]
    labels: Int[Tensor, " b"]
    heatmaps: Float[Tensor, "b 3 h w"]
    guesses: Int[Tensor, " b"]
    confidences: Float[Tensor, " b"]


def examples(shards: Shards, trial: Trial, count: int, device: torch.device, cache: ShardCache | None = None) -> Batch:
    """Images from all over a split, always the same, as the trial's model takes them; none that cannot be decoded."""
    options = LoaderOptions(
        normalization=trial.normalization, batch_size=count, device=device, cache=cache or ShardCache()
    )
    with eval_loader(shards, Transform(trial.image_size, train=False), options, examples=count) as loader:
        batch = next(iter(loader.epoch()))
    whole = finite_examples(batch.images)
    return Batch(batch.images[whole], batch.labels[whole])


def explain(
    subject: Subject, shards: Shards, count: int, device: torch.device, cache: ShardCache | None = None
) -> Explained:
    """Heatmaps of images from all over a split, the same for every model with this image size.

    Args:
        subject: model, on the device, and its trial.
        count: number of images; those that cannot be decoded are left out.
    """
    batch = examples(shards, subject.trial, count, device, cache)
    images, labels = batch.images, batch.labels
    with classifier(subject.model, subject.trial.precision) as classify:
        heatmaps = heatmap(classify, images, labels)
        with torch.no_grad():
            confidences, guesses = classify(images).softmax(1).max(1)
    return Explained(subject.trial.normalization.to_pixels(images), labels, heatmaps, guesses, confidences)


def gallery_of(trial: Trial, weights: dict[str, Tensor], device: torch.device, cache: ShardCache) -> bytes:
    """A trial's network on `IMAGES` images of the test split, as PNG; the same images for all trials of a sweep."""
    _, test = evaluation_splits(trial.data)
    model = build_model(trial.model, len(test.classes), trial.activation)
    model.load_state_dict(weights)
    shown = explain(Subject(trial.label, model.to(device), trial), test, IMAGES, device, cache)
    return draw_gallery(shown.pixels, shown.heatmaps, captions(shown, test.classes), trial.label)


def captions(explained: Explained, classes: Sequence[str]) -> list[str]:
    """The class of each image, what it was taken for, and how surely.

    Args:
        classes: names; numbers where the shards have none.
    """
    last = int(torch.cat([explained.labels, explained.guesses]).max())
    names = classes or tuple(map(str, range(last + 1)))
    columns = (explained.labels, explained.guesses, explained.confidences)
    return [
        f"{names[label]}" + ("" if label == guess else f", taken for {names[guess]}") + f" ({100 * confidence:.0f} %)"
        for label, guess, confidence in zip(*(column.tolist() for column in columns), strict=True)
    ]


def draw_gallery(
    pixels: Float[Tensor, "b 3 h w"], heatmaps: Float[Tensor, "b 3 h w"], captions: Sequence[str], title: str
) -> bytes:
    """Draw a PNG with one row for each image: the image, its heatmap, and the heatmap over the image.

    Args:
        pixels: the images, pixel fractions in [0, 1].
        heatmaps: signed; summed over channels, each scaled to the `PERCENTILE` of its own absolute values.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, side = len(pixels), 1.9
    figure = Figure(figsize=(3 * side + 1.1, rows * (side + 0.22) + 0.9), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(rows, 3, squeeze=False)
    for line, one, signed, caption in zip(axes, pixels, scaled(heatmaps), captions, strict=True):
        picture = one.permute(1, 2, 0).cpu().numpy()
        gray = one.mean(0).cpu().numpy()
        colors = {"cmap": COLORS, "vmin": -1.0, "vmax": 1.0, "interpolation": "nearest"}
        line[0].imshow(picture, interpolation="nearest")
        shown = line[1].imshow(signed.cpu().numpy(), **colors)
        line[2].imshow(gray, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        line[2].imshow(signed.cpu().numpy(), alpha=signed.abs().sqrt().cpu().numpy(), **colors)
        line[0].set_title(caption, fontsize=8, loc="left")
        for axis in line:
            axis.set_axis_off()
    for axis, name in zip(axes[-1], ("image", "heatmap", "overlay"), strict=True):
        axis.text(0.5, -0.04, name, transform=axis.transAxes, ha="center", va="top", fontsize=9)
    bar = figure.colorbar(shown, ax=axes, shrink=min(1.0, 3 / rows), aspect=30, ticks=[-1, 0, 1])
    bar.set_label(f"gradient of the class's score; 1 is the {PERCENTILE:g}th percentile of each heatmap", fontsize=8)
    stream = BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()


def scaled(heatmaps: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b h w"]:
    """Signed sum over channels in [-1, 1], zero staying zero."""
    total = heatmaps.sum(1)
    limits = torch.quantile(total.abs().flatten(1).double(), PERCENTILE / 100, dim=1)[:, None, None]
    return (total / limits.clamp(min=torch.finfo(total.dtype).tiny).to(total)).clamp(-1, 1)
