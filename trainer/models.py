"""Models by name, and the weights they start from."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer.config import UsageError
from trainer.locations import is_url, open_file
from trainer.resnet import ACTIVATIONS, BasicBlock, Bottleneck, CifarResNet, ImageNetResNet

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


STATE_FILE = "state.pt"  # in the checkpoint folder of a trial
SUFFIXES = (".pt", ".pth", ".safetensors")


def build_model(name: str, classes: int, activation: str = "relu") -> nn.Module:
    """A model with fresh weights.

    Args:
        name: one of `MODELS`, or `timm:NAME` for any model of an installed timm.
        classes: number of outputs.
        activation: of our own models; timm's keep theirs.

    Raises:
        UsageError: if the name or the activation is unknown or timm is not installed.
    """
    if activation not in ACTIVATIONS:
        raise UsageError(f"activation {activation!r} is unknown; choose from {', '.join(ACTIVATIONS)}")
    if name.startswith("timm:"):
        try:
            import timm
        except ImportError:
            raise UsageError(
                f"model {name!r} needs timm; install it with: pip install 'heatmap-sweeps[timm]'"
            ) from None
        except RuntimeError as error:  # a torchvision made for another torch
            reason = str(error).partition("\n")[0]
            raise UsageError(
                f"model {name!r}: timm cannot be imported ({reason}); install torch and torchvision from the same index"
            ) from None
        if name[5:] not in timm.list_models():
            raise UsageError(f"model {name!r}: timm {timm.__version__} has no {name[5:]!r}")
        return timm.create_model(name[5:], num_classes=classes)
    if name not in MODELS:
        raise UsageError(f"model {name!r} is unknown; choose from {', '.join(MODELS)}, or timm:NAME")
    return MODELS[name](classes, activation)


def load_weights(model: nn.Module, path: str) -> None:
    """Load a state dict (.pt, .pth, .safetensors) or a trial's checkpoint (its folder or state.pt) into the model.

    Raises:
        UsageError: if the file is missing, unreadable or of another shape than the model.
    """
    state = read_state(path)
    state = {name.removeprefix("module."): value for name, value in state.items()}
    own = model.state_dict()
    shapes = {
        name: (tuple(state[name].shape), tuple(own[name].shape))
        for name in own.keys() & state.keys()
        if state[name].shape != own[name].shape
    }
    # A state dict saved before PyTorch 0.4 has no step counters; they do not enter the computation.
    missing = {name for name in own.keys() - state.keys() if not name.endswith("num_batches_tracked")}
    unknown = state.keys() - own.keys()
    if shapes or missing or unknown:
        problems = [f"{name} is {got}, the model's is {want}" for name, (got, want) in sorted(shapes.items())[:3]]
        problems += [f"lacks {name}" for name in sorted(missing)[:3]] + [
            f"has unknown {n}" for n in sorted(unknown)[:3]
        ]
        raise UsageError(
            f"--checkpoint {path} does not fit the model: {'; '.join(problems)}. "
            "Check --model and the number of classes"
        )
    model.load_state_dict(state, strict=False)


def weights_file(location: str) -> str:
    """The file of a checkpoint, a path or URL, which may be given as its trial's folder."""
    if is_url(location):
        return location if location.endswith(SUFFIXES) else f"{location.rstrip('/')}/{STATE_FILE}"
    path = Path(location).expanduser()
    return str(path / STATE_FILE if path.is_dir() else path)


def read_content(file: str) -> Any:
    """What a weights file, by path or URL, holds; nothing in it is executed.

    Raises:
        UsageError: if it is missing or unreadable.
    """
    try:
        with open_file(file) as stream:
            content = stream.read()
        if file.endswith(".safetensors"):
            from safetensors.torch import load

            return load(content)
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UsageError(f"--checkpoint {file}: no such file") from None
    except UsageError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        raise UsageError(
            f"--checkpoint {file}: not a readable weights file ({type(error).__name__}: {reason})"
        ) from None


def read_state(location: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint.

    Raises:
        UsageError: if it is missing, unreadable or no state dict.
    """
    content = read_content(weights_file(location))
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UsageError(f"--checkpoint {location}: holds no state dict of tensors")
    return content
