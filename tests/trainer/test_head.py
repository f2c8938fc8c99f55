"""A new last layer: only it learns, it learns, and the seed alone decides what."""

import dataclasses
import random

import pytest
import torch
from PIL import Image

from trainer.cache import ShardCache
from trainer.config import Trial, UsageError
from trainer.head import train_head
from trainer.models import build_model
from trainer.shards import Sample, encode_jpeg, write_shards

COLORS = ((230, 0, 0), (0, 230, 0), (0, 0, 230), (230, 230, 230), (20, 20, 20))


@pytest.fixture
def trial(tmp_path):
    """Five classes of one color each, which random features tell apart: no training decides what is in them."""
    generator = random.Random(1)
    for split, images in (("train", 60), ("val", 40)):
        shades = [tuple(part + generator.randrange(25) for part in COLORS[i % 5]) for i in range(images)]
        samples = [Sample(f"{i}", encode_jpeg(Image.new("RGB", (32, 32), shades[i])), i % 5) for i in range(images)]
        write_shards(samples, tmp_path / "colors", split, list("abcde"), "drawn")
    return Trial(data=str(tmp_path / "colors"), model="resnet8", batch_size=16, augment=False)


@pytest.fixture
def fresh():
    torch.manual_seed(5)
    return build_model("resnet8", 5).state_dict()


def test_a_probe_learns_what_the_features_tell_apart(trial, fresh):
    head = train_head(trial, fresh, 120, torch.device("cpu"), ShardCache())
    assert head.before <= 0.4
    assert head.after > 0.8
    changed = {name for name, value in head.state.items() if not torch.equal(value, fresh[name])}
    assert changed == {"linear.weight", "linear.bias"}, "features or batch norm moved"
    assert not head.state["linear.weight"].requires_grad


def test_the_seed_decides(trial, fresh):
    def trained(seed):
        one = dataclasses.replace(trial, seed=seed)
        return train_head(one, fresh, 3, torch.device("cpu"), ShardCache()).state["linear.weight"]

    assert torch.equal(trained(0), trained(0))
    assert not torch.equal(trained(0), trained(1))


def test_all_last_layers_of_a_timm_model_learn(digits):
    name = "timm:deit_tiny_distilled_patch16_224"
    trial = Trial(data=str(digits), model=name, batch_size=2, image_size=224, augment=False)
    torch.manual_seed(0)
    state = build_model(name, 10).state_dict()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.head.MEASURED", 4)
        head = train_head(trial, state, 1, torch.device("cpu"), ShardCache())
    changed = {name.partition(".")[0] for name, value in head.state.items() if not torch.equal(value, state[name])}
    assert changed == {"head", "head_dist"}


def test_weights_that_give_no_finite_loss_are_refused(trial, fresh):
    with pytest.raises(UsageError, match="does not learn on these weights"):
        train_head(trial, fresh | {"bn1.weight": fresh["bn1.weight"] * 1e38}, 2, torch.device("cpu"), ShardCache())
