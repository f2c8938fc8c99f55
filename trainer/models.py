"""Models by name."""

from collections.abc import Callable

from torch import nn

from trainer.errors import FieldError
from trainer.model_input import check_model
from trainer.published import build_timm
from trainer.resnet import ACTIVATIONS, BasicBlock, Bottleneck, CifarResNet, ImageNetResNet
from trainer.timm_names import TIMM

MODELS: dict[str, Callable[[int, str], nn.Module]] = {
    "resnet8": lambda k, a: CifarResNet(8, k, a),
    "resnet20": lambda k, a: CifarResNet(20, k, a),
    "resnet32": lambda k, a: CifarResNet(32, k, a),
    "resnet44": lambda k, a: CifarResNet(44, k, a),
    "resnet56": lambda k, a: CifarResNet(56, k, a),
    "resnet18": lambda k, a: ImageNetResNet(BasicBlock, (2, 2, 2, 2), k, a),
    "resnet34": lambda k, a: ImageNetResNet(BasicBlock, (3, 4, 6, 3), k, a),
    "resnet50": lambda k, a: ImageNetResNet(Bottleneck, (3, 4, 6, 3), k, a),
    "resnet101": lambda k, a: ImageNetResNet(Bottleneck, (3, 4, 23, 3), k, a),
    "resnet152": lambda k, a: ImageNetResNet(Bottleneck, (3, 8, 36, 3), k, a),
}


def build_model(name: str, classes: int, activation: str = "relu") -> nn.Module:
    """A model with fresh weights.

    Args:
        name: one of `MODELS`, or `timm:NAME` for any model of an installed timm, with or without the tag of its weights
            (`timm:resnet18.a1_in1k`), or `timm:hf-hub:OWNER/NAME` for one that is published on the Hugging Face Hub.
        classes: number of outputs.
        activation: non-linearity of our own models; timm's keep theirs.

    Raises:
        UsageError: if the name or the activation is unknown or timm is not installed.
    """
    if activation not in ACTIVATIONS:
        raise FieldError("activation", activation, f"choose from {', '.join(ACTIVATIONS)}")
    if name.startswith(TIMM):
        return build_timm(name, classes)
    check_model(name)
    return MODELS[name](classes, activation)


def last_layers(model: nn.Module) -> tuple[str, ...]:
    """Names of the modules that give the logits: one, or several whose logits a model averages; none if not known."""
    config = getattr(model, "pretrained_cfg", None) or {}
    said = config.get("classifier") or ()
    modules = dict(model.named_modules())
    for names in ([said] if isinstance(said, str) else said, ["fc"], ["linear"]):
        found = tuple(name for name in names if name in modules and any(True for _ in modules[name].parameters()))
        if found:
            return found
    return ()
