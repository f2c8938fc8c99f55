"""Measure accuracy, robustness and heatmap quality of checkpoints, on the test split.

    heatmap-sweeps evaluate --checkpoint runs/SWEEP/trials/ID/epoch_0002 --data shards
    heatmap-sweeps evaluate --checkpoint resnet50.pth --model resnet50 --data s3://bucket/imagenet --images all
    heatmap-sweeps evaluate --checkpoint runs/SWEEP/trials/*/epoch_0002 --data shards --evaluate robustness --eps 1,2
    MLFLOW_TRACKING_URI=http://127.0.0.1:5000 heatmap-sweeps evaluate --checkpoint models:/resnet50/1 --data shards

`python -m trainer.evaluate` is the same. Writes report.json and one gallery of heatmaps for each checkpoint into --out.
What the metrics mean: docs/metrics.md.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from trainer.command import command, parse
from trainer.config import Activation, Precision, check_distinct
from trainer.errors import FieldError


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is to be evaluated, and how.

    Args:
        checkpoint: folder of a trial's checkpoint, file of weights, `pretrained` (downloaded by timm) or
            models:/NAME/VERSION; several of them are compared.
        data: folder or URL (http, s3, gs) of the shards.
        model: architecture of a file of weights, such as resnet50 or timm:NAME.
        ema: take the moving average that a file has beside its weights.
        activation: non-linearity of this project's own models; by default the trial's, or relu.
        image_size: side in pixels; by default the trial's or the model's.
        mean: channel means of the normalization as fractions in [0, 1]; by default the trial's or the model's.
        std: channel deviations of the normalization as fractions in (0, 1]; by default the trial's or the model's.
        split: split to evaluate on; where there is no test split, test is half of val.
        evaluate: accuracy, the trial's attack and heatmap similarity (`light`), all attacks too (`robustness`), or
            everything (`full`).
        images: number of images to attack and explain, or all.
        eps: ℓ∞ radii of the attacks in gray levels of 255.
        l2_eps: ℓ2 radii of PGD in gray levels of 255.
        steps: number of steps of PGD.
        restarts: number of random starts of PGD.
        queries: number of squares that Square tries; 0 leaves it out.
        autoattack: run AutoAttack too, at each radius of --eps; hours on a CPU.
        seed: seed of attacks and noise; by default the trial's, or 0.
        batch_size: number of images at once; by default the trial's, or 64.
        precision: data type of the model; by default the trial's, or float32.
        device: device such as cuda:1; by default a GPU where there is one.
        loader_workers: number of processes that decode images.
        gallery: number of images in a gallery; 0 leaves it out.
        out: folder of report.json and the galleries; by default runs/evaluation-DATE.
    """

    checkpoint: list[str] = field(metadata={"metavar": "C"})
    data: str
    model: str | None = None
    ema: bool = False
    activation: Activation | None = None
    image_size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    split: Literal["test", "val"] = "test"
    evaluate: Literal["light", "robustness", "full"] = "full"
    images: str = field(default="256", metadata={"metavar": "N"})
    eps: tuple[float, ...] = (1.0, 2.0, 4.0)
    l2_eps: tuple[float, ...] = (64.0, 128.0)
    steps: int = 20
    restarts: int = 1
    queries: int = 100
    autoattack: bool = False
    seed: int | None = None
    batch_size: int | None = None
    precision: Precision | None = None
    device: str | None = None
    loader_workers: int = 0
    gallery: int = 8
    out: str | None = None

    def __post_init__(self) -> None:
        for name in ("checkpoint", "eps", "l2_eps"):
            check_distinct(name, getattr(self, name))
        if self.images != "all" and not (self.images.isdecimal() and int(self.images)):
            raise FieldError("images", self.images, "give a whole number of at least 1, or all")
        for name in ("eps", "l2_eps"):
            if not all(0 <= radius < float("inf") for radius in getattr(self, name)):
                raise FieldError(name, getattr(self, name), "give gray levels, 0 or above")
        for name, least in (("steps", 1), ("restarts", 1), ("queries", 0), ("gallery", 0)):
            if getattr(self, name) < least:
                raise FieldError(name, getattr(self, name), f"give a whole number of at least {least}")

    @property
    def attacked(self) -> int | None:
        """Number of images to attack; None is all."""
        return None if self.images == "all" else int(self.images)


@command("stopped; report.json holds the checkpoints that were done")
def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate every checkpoint; the exit status."""
    asked = parse(Asked, argv, prog="heatmap-sweeps evaluate", description=__doc__ or "")
    from trainer.evaluate.run import run  # with PyTorch, once the flags are valid

    return run(asked)


if __name__ == "__main__":
    sys.exit(main())
