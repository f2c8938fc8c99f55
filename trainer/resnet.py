"""Residual networks: ImageNet's 18/34/50/101/152 and CIFAR's 20/32/44/56.

The ImageNet family has torchvision's parameter names, the CIFAR family those of the widely published
checkpoints (conv1, bn1, layer1-3, linear; parameter-free shortcuts), so that weights load by name.

References:
    He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition. CVPR 2016, tables 1 and 6.
"""

from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "softplus": nn.Softplus,
    "silu": nn.SiLU,
}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around an identity."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, shortcut: nn.Module | None, activation: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = shortcut
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        out = self.activation(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.activation(out + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3 (carrying the stride), 1x1 convolutions around an identity."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, shortcut: nn.Module | None, activation: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.downsample = shortcut
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        out = self.activation(self.bn1(self.conv1(x)))
        out = self.activation(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.activation(out + (x if self.downsample is None else self.downsample(x)))


class SliceAndPad(nn.Module):
    """Parameter-free shortcut (option A): every second pixel, missing channels zero on both sides."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.before = (outputs - inputs) // 2
        self.after = outputs - inputs - self.before

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


def _stage(
    block: type[BasicBlock] | type[Bottleneck],
    inputs: int,
    width: int,
    depth: int,
    stride: int,
    shortcut: nn.Module | None,
    activation: str,
) -> nn.Sequential:
    outputs = width * block.expansion
    blocks = [block(inputs, width, stride, shortcut, activation)]
    blocks += [block(outputs, width, 1, None, activation) for _ in range(depth - 1)]
    return nn.Sequential(*blocks)


class ImageNetResNet(nn.Module):
    """ResNet for images of about 224 pixels, with torchvision's parameter names."""

    def __init__(
        self, block: type[BasicBlock] | type[Bottleneck], depths: tuple[int, ...], classes: int, activation: str
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.activation = ACTIVATIONS[activation]()
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs = 64
        for index, depth in enumerate(depths):
            width, stride = 64 * 2**index, 1 if index == 0 else 2
            outputs = width * block.expansion
            shortcut = None
            if stride != 1 or inputs != outputs:
                shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
            self.add_module(f"layer{index + 1}", _stage(block, inputs, width, depth, stride, shortcut, activation))
            inputs = outputs
        self.fc = nn.Linear(inputs, classes)
        _initialize(self)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b k"]:
        x = self.maxpool(self.activation(self.bn1(self.conv1(images))))
        for index in range(1, 5):
            x = self.get_submodule(f"layer{index}")(x)
        return self.fc(x.mean(dim=(2, 3)))


class CifarResNet(nn.Module):
    """ResNet for images of about 32 pixels."""

    def __init__(self, depth: int, classes: int, activation: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.activation = ACTIVATIONS[activation]()
        for index in range(3):
            width, stride = 16 * 2**index, 1 if index == 0 else 2
            inputs = 16 if index == 0 else width // 2
            shortcut = SliceAndPad(inputs, width) if index else None
            blocks = _stage(BasicBlock, inputs, width, (depth - 2) // 6, stride, shortcut, activation)
            self.add_module(f"layer{index + 1}", blocks)
        self.linear = nn.Linear(64, classes)
        _initialize(self)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b k"]:
        x = self.activation(self.bn1(self.conv1(images)))
        for index in range(1, 4):
            x = self.get_submodule(f"layer{index}")(x)
        return self.linear(x.mean(dim=(2, 3)))


def _initialize(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
