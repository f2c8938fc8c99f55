"""A trial is a value: everything that decides what one training run computes."""

import dataclasses
import difflib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal, cast, get_args, get_type_hints

from regularizers._names import regularizer_names as regularizer_names
from trainer.errors import FieldError, shown
from trainer.errors import UsageError as UsageError
from trainer.model_input import IMAGENET_MEAN, IMAGENET_STD, Channels, complete
from trainer.plain import set_types

if TYPE_CHECKING:
    from regularizers import Regularizer
    from trainer.normalization import Normalization

Activation = Literal["relu", "gelu", "softplus", "silu"]
BatchNorm = Literal["frozen", "stop", "flow"]
DoubleBackprop = Literal["fast", "pytorch"]
Evaluation = Literal["light", "full"]
Precision = Literal["float32", "bfloat16"]
Schedule = Literal["constant", "imagenet"]

SEEDS = 2**32  # numpy takes no larger ones


def check_regularizers(field: str, names: Iterable[str]) -> None:
    """Refuse names of regularizers there are none of.

    Raises:
        FieldError: naming the nearest, and all.
    """
    known = regularizer_names()
    for name in names:
        if name not in known:
            word = name.lower()
            near = difflib.get_close_matches(word, known, 2) or difflib.get_close_matches(word, known, 1, cutoff=0.5)
            meant = f"did you mean {' or '.join(near)}? " if near else ""
            raise FieldError(field, name, f"is unknown; {meant}choose from {', '.join(known)}")


def check_choices(settings: Any) -> None:
    """Refuse values of a dataclass's fields that its `Literal`s do not name.

    Raises:
        FieldError: naming those.
    """
    for name, kind in get_type_hints(type(settings)).items():
        choices, value = get_args(kind), getattr(settings, name)
        if getattr(kind, "__origin__", None) is Literal and value not in choices:
            near = difflib.get_close_matches(str(value).lower(), choices, 1)
            meant = f"did you mean {near[0]}? " if near else ""
            raise FieldError(name, value, f"{meant}choose from {', '.join(choices)}")


def check_distinct(name: str, values: Iterable[Any]) -> None:
    """Refuse a list that has a value more than once.

    Raises:
        FieldError: naming the list and the value.
    """
    values = tuple(values)
    for value in values:
        if values.count(value) > 1:
            raise FieldError(name, values, f"give {shown(value)} only once")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Settings of one training run.

    Args:
        data: folder or URL of the shards (http, s3, gs; braces expand); None is the embedded digits, which a sweep
            writes into its own folder.
        model: architecture, such as resnet20, resnet50 or timm:NAME.
        checkpoint: weights to finetune, a file of PyTorch or safetensors, or `pretrained`: those that timm downloads;
            None trains from scratch.
        regularizer: name of the penalty in `REGULARIZERS`.
        weight: absolute weight of the penalty. In a sweep, a weight above 0 is used for every penalty, and 0 lets the
            search choose.
        penalty_settings: other tunable fields of the regularizer by name; those left out keep their defaults.
        epochs: number of epochs.
        images_per_epoch: number of images in an epoch over all workers, rounded down to whole global batches; None is
            the size of the training split.
        batch_size: number of images per worker and step.
        learning_rate: learning rate of SGD with Nesterov momentum; for a batch of 256 with the `imagenet` schedule.
        schedule: learning rate over time: `constant`, or `imagenet` (warm-up, then three steps down).
        momentum: momentum of SGD.
        weight_decay: weight decay of weights with two or more dimensions.
        label_smoothing: label smoothing of the cross-entropy in the training loss.
        clip_norm: largest norm of the gradient of all weights, because penalties have heavy tails; None is no limit.
        batch_norm: statistics of batch norm: running ones (`frozen`, no example touches another), or those of the
            batch, as constants of the heatmap (`stop`) or differentiated like everything else (`flow`).
        precision: data type of the model; loss and penalty stay in float32.
        double_backprop: second derivatives by this project's cheaper functions where their conditions hold (`fast`), or
            by PyTorch's alone (`pytorch`); the results are the same up to rounding.
        compile: translate the whole loss, input gradient included, with torch.compile; needs `frozen` batch norm.
        activation: non-linearity of this project's own models.
        image_size: side in pixels to which images are cropped and scaled; None is the model's own. CIFAR's ResNets take
            any size: with None their images keep their own, which must be equal.
        mean: channel means of the normalization, R,G,B as fractions in [0, 1]; None is the model's own.
        std: channel deviations of the normalization, R,G,B as fractions in (0, 1]; None is the model's own.
        augment: crop training images at random, and flip them.
        flip: flip half of the training images, if they are augmented.
        evaluate: measurements on the test split after the last epoch: those made on val (`light`), or everything
            (`full`).
        robust_images: number of images attacked and explained after the last epoch; fewer after the others.
        pgd_eps: radius of the ℓ∞ attack as a fraction of the pixel range; 2/255 is two gray levels.
        pgd_steps: number of steps of the attack.
        loader_workers: number of data-loading processes per training worker; None is 0, or up to 6 in a sweep on GPUs.
        seed: seed of data order, random projections, attacks and, in a sweep, of the search.
    """

    data: str | None = None
    model: str
    checkpoint: str | None = None
    regularizer: str = "none"
    weight: float = 0.0
    penalty_settings: Mapping[str, int | float] = field(default_factory=dict)
    epochs: int = 2
    images_per_epoch: int | None = None
    batch_size: int = 64
    learning_rate: float = 3e-3
    schedule: Schedule = "constant"
    momentum: float = 0.9
    weight_decay: float = 1e-4
    label_smoothing: float = 0.0
    clip_norm: float | None = 2.0
    batch_norm: BatchNorm = "frozen"
    precision: Precision = "float32"
    double_backprop: DoubleBackprop = "fast"
    compile: bool = False
    activation: Activation = "relu"
    image_size: int | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    augment: bool = True
    flip: bool = True
    evaluate: Evaluation = "light"
    robust_images: int = 256
    pgd_eps: float = 2 / 255
    pgd_steps: int = 8
    loader_workers: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        set_types(self)
        self.check()
        own = complete(self.model, self.mean, self.std, self.image_size)
        for name in ("mean", "std", "image_size"):  # so that what is kept of a trial has the numbers
            object.__setattr__(self, name, getattr(own, name))

    def check(self) -> None:
        """Refuse what cannot be, as far as it can be told without PyTorch and timm.

        Raises:
            FieldError: naming the field.
        """
        check_regularizers("regularizer", [self.regularizer])
        check_choices(self)
        if self.compile and self.batch_norm != "frozen":
            raise FieldError("compile", True, f"needs `batch_norm` frozen, not {self.batch_norm}: change one of them")
        for name in ("epochs", "images_per_epoch", "batch_size", "image_size", "robust_images", "pgd_steps"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise FieldError(name, value, "give a whole number of at least 1")
        for name in ("weight", "momentum", "weight_decay", "loader_workers"):
            if (value := getattr(self, name)) is not None and not 0 <= value < math.inf:
                raise FieldError(name, value, "give a finite number, 0 or above")
        for name in ("learning_rate", "clip_norm"):
            if (value := getattr(self, name)) is not None and not 0 < value < math.inf:
                raise FieldError(name, value, "give a finite number above 0")
        if self.momentum >= 1:
            raise FieldError("momentum", self.momentum, "give a fraction, from 0 to below 1")
        if not 0 <= self.seed < SEEDS:
            raise FieldError("seed", self.seed, f"give a whole number from 0 to below {SEEDS}")
        if not 0 <= self.label_smoothing < 1:
            raise FieldError("label_smoothing", self.label_smoothing, "give a fraction, from 0 to below 1")
        if not 0 <= self.pgd_eps < 1:
            levels = shown(self.pgd_eps if self.pgd_eps in range(1, 255) else 2.0)
            raise FieldError("pgd_eps", self.pgd_eps, f"give a fraction of the pixel range, such as {levels}/255")
        if self.penalty_settings:  # which are few trials' at most, and know PyTorch
            self.penalty()

    def penalty(self) -> "Regularizer":
        """The regularizer with this trial's weight and settings.

        Raises:
            FieldError: if it has no such settings, or they cannot be.
        """
        from regularizers import REGULARIZERS

        kind = REGULARIZERS[self.regularizer]
        if unknown := set(self.penalty_settings) - set(kind.settings()):
            known = ", ".join(kind.settings()) or "none but the weight"
            remedy = f"{self.regularizer} has no {min(unknown)!r}; it has {known}"
            raise FieldError("penalty_settings", self.penalty_settings, remedy)
        try:
            return kind(weight=self.weight, **self.penalty_settings)
        except ValueError as error:
            raise UsageError(str(error)) from None

    @property
    def normalization(self) -> "Normalization":
        """Normalization of the images."""
        from trainer.normalization import Normalization

        return Normalization(cast(Channels, self.mean), cast(Channels, self.std))  # since __post_init__

    @property
    def epoch_images(self) -> int:
        """Images of one epoch.

        Raises:
            UsageError: if that is the training split, which has not been counted yet.
        """
        if self.images_per_epoch is None:
            raise FieldError("images_per_epoch", None, "give a number, where the training split is not read")
        return self.images_per_epoch

    def steps_per_epoch(self, world_size: int) -> int:
        """Steps of each worker in one epoch.

        Raises:
            UsageError: if an epoch has fewer images than one global batch.
        """
        steps = self.epoch_images // (self.batch_size * world_size)
        if steps < 1:
            raise FieldError(
                "images_per_epoch",
                self.images_per_epoch,
                f"is less than one step of {world_size} worker(s) x batch size {self.batch_size}; raise it, or lower "
                "`batch_size`",
            )
        return steps

    @property
    def label(self) -> str:
        """Such as `ssim w=0.13`, with settings that are not the defaults behind it."""
        weight = [f"w={self.weight:.3g}"] if self.weight else []
        return " ".join([self.regularizer, *weight, *in_words(self.penalty_settings)])

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, for checkpoints, Ray and MLflow."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> "Trial":
        """The trial of `to_dict`; of one that says no mean and deviation, those of ImageNet, which all had once."""
        return cls(**{"mean": IMAGENET_MEAN, "std": IMAGENET_STD} | settings)

    def digest(self) -> str:
        """Short hash of every setting: two trials with the same digest compute the same."""
        return sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:12]


def in_words(penalty_settings: Mapping[str, int | float]) -> list[str]:
    """Such as `error=0.5`, one for each setting."""
    return [f"{name}={value:.3g}" for name, value in penalty_settings.items()]
