"""A trial is a value: everything that decides what one training run computes."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, cast

from regularizers import REGULARIZERS, Regularizer
from trainer.errors import UsageError as UsageError
from trainer.normalization import IMAGENET, Channels, Normalization

BATCH_NORM_MODES = ("frozen", "stop", "flow")
PRECISIONS = ("float32", "bfloat16")
DOUBLE_BACKPROP = ("fast", "pytorch")
EVALUATIONS = ("light", "full")
SCHEDULES = ("constant", "imagenet")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Settings of one training run.

    Args:
        data: shards, a folder or URL; None is the handwritten digits, which a sweep writes into its folder.
        model: name of the architecture (`trainer.models.MODELS`, or `timm:NAME`).
        checkpoint: weights to start from, a file or `pretrained` (those that timm knows of); None starts from scratch.
        regularizer: name in `REGULARIZERS`.
        weight: absolute weight of the penalty. On the trial of a sweep, that of every penalty; 0 lets the sweep search.
        epochs: passes of `images_per_epoch`.
        images_per_epoch: images over all workers in one epoch, rounded down to whole global batches; None is the
            training split, once.
        batch_size: images per worker and step.
        learning_rate: of SGD with Nesterov momentum; under the `imagenet` schedule, for a batch of 256.
        schedule: of the learning rate: `constant`, or `imagenet` (warm-up, then three steps down; `trainer.schedule`).
        momentum: of SGD.
        weight_decay: of SGD, on weights of two and more dimensions.
        label_smoothing: of the cross-entropy in the training loss.
        clip_norm: largest norm of the gradient of all weights, as penalties have heavy tails; None is no limit.
        batch_norm: `frozen` (running statistics: no example touches another), `stop` (batch statistics, constants of
            the heatmap) or `flow` (batch statistics, differentiated like everything else).
        precision: `float32`, or `bfloat16` for the model under autocast (loss and penalty stay in float32).
        double_backprop: `fast` uses this project's cheaper second derivatives where their conditions hold, `pytorch`
            PyTorch's functions alone, for whoever doubts ours; the results are the same up to rounding.
        compile: whether torch.compile translates the whole loss, input gradient included; needs `frozen`.
        activation: non-linearity of our own models.
        image_size: side in pixels that images are cropped and scaled to; None is the model's own. It stays None for
            models that take any (CIFAR's ResNets): images keep their own size, which must be equal.
        mean: of the normalization, pixel fractions in [0, 1] of red, green and blue; None is the model's own.
        std: deviation of the normalization, pixel fractions in (0, 1]; None is the model's own.
        augment: whether training crops at random, and flips.
        flip: whether that flips half the images.
        evaluate: at the end, on the test split: `light` measures what it measured on val, `full` everything.
        robust_images: images attacked and explained at the end; fewer after the other epochs.
        pgd_eps: radius of the ℓ∞ attack in pixel fractions of 1 (2/255 is two grey levels).
        pgd_steps: steps of the attack.
        loader_workers: data-loading processes per training worker; None is 0, or up to 6 in a sweep on GPUs.
        seed: of data order, spectreg's projections and attacks.
    """

    data: str | None = None
    model: str
    checkpoint: str | None = None
    regularizer: str = "none"
    weight: float = 0.0
    epochs: int = 2
    images_per_epoch: int | None = None
    batch_size: int = 64
    learning_rate: float = 3e-3
    schedule: str = "constant"
    momentum: float = 0.9
    weight_decay: float = 1e-4
    label_smoothing: float = 0.0
    clip_norm: float | None = 2.0
    batch_norm: str = "frozen"
    precision: str = "float32"
    double_backprop: str = "fast"
    compile: bool = False
    activation: str = "relu"
    image_size: int | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    augment: bool = True
    flip: bool = True
    evaluate: str = "light"
    robust_images: int = 256
    pgd_eps: float = 2 / 255
    pgd_steps: int = 8
    loader_workers: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        from trainer.model_input import complete

        own = complete(self.model, self.mean, self.std, self.image_size)
        for name in ("mean", "std", "image_size"):  # so that what is kept of a trial has the numbers
            object.__setattr__(self, name, getattr(own, name))
        if self.regularizer not in REGULARIZERS:
            raise UsageError(
                f"regularizer {self.regularizer!r} is unknown; choose from {', '.join(sorted(REGULARIZERS))}"
            )
        for name, known in (
            ("batch_norm", BATCH_NORM_MODES),
            ("precision", PRECISIONS),
            ("double_backprop", DOUBLE_BACKPROP),
            ("evaluate", EVALUATIONS),
            ("schedule", SCHEDULES),
        ):
            if getattr(self, name) not in known:
                raise UsageError(f"{name} {getattr(self, name)!r} is unknown; choose from {', '.join(known)}")
        if self.compile and self.batch_norm != "frozen":
            raise UsageError(f"compile needs batch_norm 'frozen', not {self.batch_norm!r}: drop --compile or change it")
        for name in ("epochs", "images_per_epoch", "batch_size", "robust_images", "pgd_steps"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UsageError(f"{name}={value}: give a whole number of at least 1")
        if self.learning_rate <= 0:
            raise UsageError(f"learning_rate={self.learning_rate}: give a number above 0")
        self.penalty()  # checks the weight

    def penalty(self) -> Regularizer:
        """The regularizer with this trial's weight."""
        try:
            return REGULARIZERS[self.regularizer](weight=self.weight)
        except ValueError as error:
            raise UsageError(str(error)) from None

    @property
    def normalization(self) -> Normalization:
        """Of the images."""
        return Normalization(cast(Channels, self.mean), cast(Channels, self.std))  # since __post_init__

    @property
    def epoch_images(self) -> int:
        """Images of one epoch.

        Raises:
            UsageError: if that is the training split, which has not been counted yet.
        """
        if self.images_per_epoch is None:
            raise UsageError("images_per_epoch=None: give a number, where the training split is not read")
        return self.images_per_epoch

    def steps_per_epoch(self, world_size: int) -> int:
        """Steps of each worker in one epoch.

        Raises:
            UsageError: if an epoch has fewer images than one global batch.
        """
        steps = self.epoch_images // (self.batch_size * world_size)
        if steps < 1:
            raise UsageError(
                f"images_per_epoch={self.images_per_epoch} is less than one step of {world_size} worker(s) x "
                f"batch size {self.batch_size}; raise --images-per-epoch or lower --batch-size"
            )
        return steps

    @property
    def label(self) -> str:
        """Such as `ssim w=0.13`."""
        return f"{self.regularizer} w={self.weight:.3g}" if self.weight else self.regularizer

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, for checkpoints, Ray and MLflow."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> "Trial":
        """The trial of `to_dict`; of one that says no mean and deviation, those of ImageNet, which all had once."""
        return cls(**{"mean": IMAGENET.mean, "std": IMAGENET.std} | settings)

    def digest(self) -> str:
        """Short hash of every setting: two trials with the same digest compute the same."""
        return sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:12]
