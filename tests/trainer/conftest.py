"""The shard maker's command line, small trials, a small network that knows its digits."""

from dataclasses import dataclass

import pytest
import timm_on_cpu  # noqa: F401
import torch
import torch.nn.functional as F
from object_store import object_store  # noqa: F401
from weight_files import noisy


@pytest.fixture
def command():
    """Run the command in this process; its exit status."""
    from trainer.shards import __main__ as shards_command

    def run(*arguments):
        return shards_command.main([str(argument) for argument in arguments])

    return run


@pytest.fixture(scope="session")
def solved(digits):
    """A small network with random layers and a last layer by least squares: it knows most digits, on any machine.

    What a training ends with depends on how a CPU rounds; this differs in the last digits only.
    """
    from trainer.data import LoaderOptions, eval_loader
    from trainer.models import build_model
    from trainer.normalization import IMAGENET
    from trainer.preprocess import Transform
    from trainer.shards import read_shards

    torch.manual_seed(0)
    model = build_model("resnet8", 10).requires_grad_(False)
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.momentum = 1.0
    transform, features, labels = Transform(None, train=False), [], []
    loader = eval_loader(
        read_shards(digits, "train"), transform, LoaderOptions(normalization=IMAGENET, batch_size=150), examples=600
    ).epoch()
    with model.linear.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0].double())):
        for number, batch in enumerate(loader):
            if number == 0:
                model(batch.images)  # for the running statistics
                model.eval()
                features.clear()
            model(batch.images)
            labels.append(batch.labels)
    targets = 10 * F.one_hot(torch.cat(labels)).double()
    mean = torch.cat(features).mean(0)
    centered = torch.cat(features) - mean
    ridge = 0.03 / 64 * centered.square().sum() * torch.eye(64)
    matrix = torch.linalg.solve(centered.T @ centered + ridge, centered.T @ targets)
    model.linear.weight.copy_(matrix.T)
    model.linear.bias.copy_(targets.mean(0) - mean @ matrix)
    return model


@pytest.fixture(scope="session")
def source():
    """A small network with weights of its own in every parameter and buffer."""
    from trainer.models import build_model

    return noisy(build_model("resnet8", 10), 1)


@pytest.fixture
def trial(digits):
    from trainer.config import Trial

    return Trial(
        data=str(digits), model="resnet8", regularizer="l2", weight=0.1, epochs=2, images_per_epoch=64, batch_size=16,
        robust_images=16, pgd_steps=1, activation="softplus", augment=False,
    )  # fmt: skip


@pytest.fixture
def one_broken(monkeypatch):
    """The image that is read first: one of 1,258, and of the few of an epoch."""
    from trainer.preprocess import DecodeError, Transform

    decode, bad = Transform.__call__, []

    def broken(self, encoded, randomness):
        bad.append(encoded)
        if encoded == bad[0]:
            raise DecodeError("cut off")
        return decode(self, encoded, randomness)

    monkeypatch.setattr(Transform, "__call__", broken)


@pytest.fixture
def scalar(monkeypatch):
    """A regularizer `scalar` that is wrong: it reduces over the batch."""
    from regularizers import REGULARIZERS, Regularizer

    @dataclass(frozen=True, kw_only=True)
    class Scalar(Regularizer):
        name = "scalar"

        def formula(self, heatmap, images):
            return heatmap.square().mean()

    monkeypatch.setitem(REGULARIZERS, "scalar", Scalar)
