"""What a model is to be fed: mean and deviation of its normalization, and the side of its images.

timm has it for each of its models and for each of the weights it knows; a third of them use another mean than
ImageNet's.
"""

import difflib
import logging
from dataclasses import dataclass
from typing import Any

from trainer.errors import FieldError
from trainer.timm_names import HUB, TIMM, check_name, import_timm, is_timm

Channels = tuple[float, float, float]  # red, green, blue
IMAGENET_MEAN: Channels = (0.485, 0.456, 0.406)
IMAGENET_STD: Channels = (0.229, 0.224, 0.225)
CIFAR_RESNETS = ("resnet8", "resnet20", "resnet32", "resnet44", "resnet56")
IMAGENET_RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


@dataclass(frozen=True)
class ModelInput:
    """What a model is fed.

    Args:
        mean: mean of the normalization, pixel fractions in [0, 1] of red, green and blue.
        std: deviation of the normalization, pixel fractions in (0, 1].
        image_size: side in pixels; None takes images as large as they are.
        fixed: whether the model takes images of that size only.
    """

    mean: Channels
    std: Channels
    image_size: int | None
    fixed: bool = False


def check_model(name: str) -> None:
    """Refuse a name that is neither one of our models nor said to be timm's, and name the nearest.

    Raises:
        FieldError: with what may have been meant.
    """
    own = (*CIFAR_RESNETS, *IMAGENET_RESNETS)
    if name.startswith(TIMM) or name in own:
        return
    near = difflib.get_close_matches(name, own, 2)
    if not near and is_timm(name):  # asked last: importing it takes seconds
        near = [f"{TIMM}{name}"]
    meant = f"; did you mean {' or '.join(near)}?" if near else ""
    raise FieldError("model", name, f"is unknown{meant} There are {', '.join(own)}, and timm's as timm:NAME")


def model_input(name: str) -> ModelInput:
    """What the model of this name is made for.

    Of a timm model it is the input of its pretrained configuration, that of the tag where the name has one. The size is
    the one its weights were trained at (`input_size`); the larger `test_input_size`, at which some score a little
    higher, would make each regularized step dearer, and a trial trains and evaluates at one size.

    Args:
        name: name of the model: `resnet50`, `timm:NAME`, `timm:NAME.TAG` or `timm:hf-hub:ORGANIZATION/NAME`, whose
            configuration is downloaded, or taken from the hub's cache. Of a name that is none of these ImageNet's mean
            and deviation, and the images' own size.

    Raises:
        UsageError: if timm is not installed, knows no such name, cannot reach the hub, or the model takes other than
            square images of three channels.
    """
    if not name.startswith(TIMM):
        return ModelInput(IMAGENET_MEAN, IMAGENET_STD, 224 if name in IMAGENET_RESNETS else None)
    settings = _timm_settings(name)
    size, mean, std = settings["input_size"], settings["mean"], settings["std"]
    if size[0] != 3 or len(mean) != 3 or len(std) != 3:
        raise FieldError("model", name, f"takes images of {size[0]} channels; choose one for red, green and blue")
    if size[1] != size[2]:
        raise FieldError("model", name, f"takes images of {size[2]}x{size[1]} pixels; choose one for square images")
    return ModelInput(_channels("mean", mean), _channels("std", std), size[1], settings["fixed_input_size"])


def complete(name: str, mean: Any, std: Any, image_size: int | None) -> ModelInput:
    """What a model is to be fed, from what a user has said of it; what is None is the model's own.

    Raises:
        UsageError: if a number cannot be, or the model takes images of another size only, or as `model_input` does.
    """
    mean, std = (None if values is None else _channels(kind, values) for kind, values in (("mean", mean), ("std", std)))
    if mean is not None and std is not None and image_size is not None:
        return ModelInput(mean, std, image_size)  # without a look at timm
    own = model_input(name)
    if own.fixed and image_size not in (None, own.image_size):
        raise FieldError(
            "image_size",
            image_size,
            f"model {name!r} takes images of {own.image_size} pixels a side only; give {own.image_size}",
        )
    size = own.image_size if image_size is None else image_size
    return ModelInput(mean or own.mean, std or own.std, size, own.fixed)


def _channels(field: str, values: Any) -> Channels:
    lowest = "above 0" if field == "std" else "from 0"
    usual = ",".join(map(str, IMAGENET_STD if field == "std" else IMAGENET_MEAN))
    try:
        red, green, blue = map(float, values)
        good = all(0 <= value <= 1 and (value or field == "mean") for value in (red, green, blue))
    except (TypeError, ValueError):
        good = False
    if not good:
        raise FieldError(
            field,
            values,
            f"give three pixel fractions, {lowest} to 1, for red, green and blue, such as {usual}; divide gray levels "
            "by 255",
        )
    return red, green, blue


def _timm_settings(name: str) -> dict[str, Any]:
    """Of timm's pretrained configuration; what it does not say is timm's default."""
    timm, own = import_timm(name), name.removeprefix(TIMM)
    if name.startswith(HUB):
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it logs every attempt
        try:
            settings, _, _ = timm.models.load_model_config_from_hf(name.removeprefix(HUB))
        except Exception as error:  # of the network, of the hub, of the file
            reason = next(iter(str(error).strip().splitlines()), "")[:200]
            raise FieldError(
                "model",
                name,
                f"the hub has no configuration for it, or cannot be reached ({type(error).__name__}: {reason}); a name "
                "that timm knows needs no network",
            ) from None
    else:
        check_name(timm, name)
        found = timm.get_pretrained_cfg(own)
        settings = vars(found) if found else {}
    return vars(timm.models.PretrainedCfg()) | settings
