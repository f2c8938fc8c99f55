"""Settings under a name, as the values that flags or keywords change.

Sweep(trial=presets.digits(epochs=4))
presets.original(data="imagenet-shards", model="resnet50", checkpoint="resnet50.pth")
"""

from typing import Any

from sweeps.settings import Sweep
from trainer.config import Trial
from trainer.errors import FieldError
from trainer.placement import Placement

# Two gray levels of 255 are nothing to thick strokes on black; eight separate good heatmaps from bad ones.
DIGITS: dict[str, Any] = {
    "model": "resnet8",
    "epochs": 2,
    "images_per_epoch": 1024,
    "batch_size": 32,
    "pgd_eps": 8 / 255,
    "image_size": 32,  # theirs; another model's own may be many times as large
    "augment": False,  # a mirrored digit is another one
}

ORIGINAL: dict[str, Any] = {
    "weight": 0.5,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "label_smoothing": 0.1,
    "clip_norm": None,
    "batch_norm": "flow",
    "flip": False,
}
ORIGINAL_BATCH = 512  # over all workers
FINETUNING: dict[str, Any] = {
    "learning_rate": 2e-4,
    "schedule": "constant",
    "epochs": 1,
    "images_per_epoch": 500 * ORIGINAL_BATCH,
}
TRAINING: dict[str, Any] = {
    "learning_rate": 0.1,
    "schedule": "imagenet",
    "epochs": 13,  # 32,000 steps are 12.8 of ImageNet
}


def digits(**changes: Any) -> Trial:
    """The embedded default: handwritten digits, and a small net that the sweep pretrains on them.

    Args:
        changes: fields of the trial that are to have other values.
    """
    return Trial(**DIGITS | changes)


def original(workers: int = 1, **changes: Any) -> Sweep:
    """What google-research's optimizing_interpretability trains with; docs/original.md goes through its flags.

    Args:
        workers: workers of each trial, which share a batch of 512 images.
        changes: fields of the trial that are to have other values: data, model and checkpoint, or none of them for the
            digits. With a checkpoint it is finetuned, without one a model is trained from scratch.

    Raises:
        UsageError: if the batch cannot be divided among the workers.
    """
    if "batch_size" not in changes and ORIGINAL_BATCH % workers:
        raise FieldError(
            "workers", workers, f"cannot share the original's batch of {ORIGINAL_BATCH}; give `batch_size` or another"
        )
    embedded = changes.get("data") is None
    finetune = embedded or changes.get("checkpoint") is not None
    settings = (DIGITS if embedded else {}) | ORIGINAL | (FINETUNING if finetune else TRAINING)
    batch = {"batch_size": ORIGINAL_BATCH // workers}
    return Sweep(
        trial=Trial(**settings | batch | changes), scheduler="none", placement=Placement(workers=workers)
    )  # fmt: skip
