"""What the trials of a sweep start from, where published weights do not fit as they are."""

import dataclasses
import os
import random
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from sweeps import start_weights
from sweeps.messages import Stage, told_to
from sweeps.settings import Sweep
from sweeps.start_weights import is_made, load_start, make_start
from trainer.config import Trial, UsageError
from trainer.evaluate.subject import load_subject
from trainer.fit import prepare_model
from trainer.last_layer import imagenet_wnids
from trainer.models import build_model
from trainer.placement import Placement
from trainer.shards import Sample, encode_jpeg, write_shards

ROOT = Path(__file__).parents[2]
ROWS = (7, 3, 999)


@pytest.fixture
def thousand(tmp_path):
    """A file of weights of a thousand classes, and of their moving average."""
    torch.manual_seed(0)
    plain, averaged = (build_model("resnet8", 1000).state_dict() for _ in range(2))
    torch.save({"state_dict": plain, "state_dict_ema": averaged}, tmp_path / "published.pth")
    return str(tmp_path / "published.pth"), plain, averaged


@pytest.fixture
def birds(tmp_path):
    """Shards whose three classes are WordNet ids, not in their order."""
    classes = [imagenet_wnids()[row] for row in ROWS]
    generator = random.Random(0)
    for split in ("train", "val"):
        samples = [
            Sample(f"{i}", encode_jpeg(Image.new("RGB", (32, 32), (generator.randrange(256), 0, 80 * (i % 3)))), i % 3)
            for i in range(24)
        ]
        write_shards(samples, tmp_path / "birds", split, classes, "drawn")
    return str(tmp_path / "birds")


def sweep_of(tmp_path, data, checkpoint, **more):
    return Sweep(
        name="s", storage=str(tmp_path / "runs"), regularizers=("l2",),
        trial=Trial(data=str(data), model="resnet8", checkpoint=checkpoint, batch_size=8, images_per_epoch=16),
        placement=Placement(gpus_per_worker=0.0, cpus_per_worker=1.0), **more,
    )  # fmt: skip


def made(sweep):
    lines = []
    with told_to(lambda message: lines.append(message.text) if isinstance(message, Stage) else None):
        return make_start(sweep), lines


def test_weights_that_fit_are_read_as_they_are(tmp_path, digits):
    sweep = sweep_of(tmp_path, digits, "weights.pth")
    assert not is_made(sweep)
    assert made(sweep)[0] is sweep


def test_a_new_head_is_trained_once_and_trials_start_from_it(tmp_path, digits, thousand):
    path, plain, _ = thousand
    sweep = sweep_of(tmp_path, digits, path, new_head=True, head_steps=2)
    ready, lines = made(sweep)
    assert lines == ["training a new last layer for 10 classes, 2 steps, the rest frozen"]
    assert (ready.trial.checkpoint, ready.source) == (f"{sweep.folder}/start.pt", path)
    model = prepare_model(ready.trial, 10)
    assert torch.equal(model.layer3[0].conv2.weight, plain["layer3.0.conv2.weight"])
    untrained = prepare_model(sweep_of(tmp_path, digits, None).trial, 10)
    moved = (model.linear.weight - untrained.linear.weight).abs().max()
    assert 0 < moved < 0.1, "the layer is the trial's own, moved by two steps"
    ready.save()
    assert Sweep.load("s", ready.storage) == ready


def test_the_layer_stays_random_if_asked(tmp_path, digits, thousand, monkeypatch):
    monkeypatch.setattr(start_weights, "train_head", None)
    ready, lines = made(sweep_of(tmp_path, digits, thousand[0], new_head=True, head_steps=0))
    assert lines == []
    assert prepare_model(ready.trial, 10).linear.out_features == 10


def test_the_moving_average_is_what_trials_start_from(tmp_path, digits):
    plain, averaged = (build_model("resnet8", 10).state_dict() for _ in range(2))
    torch.save({"model": plain, "model_ema": averaged}, tmp_path / "w.pth")
    sweep = sweep_of(tmp_path, digits, str(tmp_path / "w.pth"), ema=True)
    lines = []
    load_start(sweep, lines.append)
    assert "weights taken from model_ema" in lines[0]
    model = prepare_model(made(sweep)[0].trial, 10)
    assert torch.equal(model.linear.weight, averaged["linear.weight"])


def test_published_weights_are_downloaded_by_the_driver_alone(tmp_path, digits, monkeypatch):
    asked, name = [], "timm:test_resnet.r160_in1k"
    theirs = build_model(name, 10).state_dict()
    monkeypatch.setattr("trainer.weights.published", lambda model: asked.append(model) or {"model": theirs})
    sweep = sweep_of(tmp_path, digits, "pretrained")
    sweep = dataclasses.replace(sweep, trial=dataclasses.replace(sweep.trial, model=name))
    ready, _ = made(sweep)
    assert asked == [name]
    assert (ready.trial.checkpoint, ready.source) == (f"{sweep.folder}/start.pt", "pretrained")
    model = prepare_model(ready.trial, 10)
    assert asked == [name], "a trial downloaded them again"
    assert all(torch.equal(value, theirs[key]) for key, value in model.state_dict().items())


def test_classes_that_the_weights_know_are_taken_and_not_trained(tmp_path, birds, thousand, monkeypatch):
    path, plain, averaged = thousand
    monkeypatch.setattr(start_weights, "train_head", None)
    sweep = sweep_of(tmp_path, birds, path, new_head=True, ema=True)
    model = prepare_model(made(sweep)[0].trial, 3)
    assert torch.equal(model.linear.weight, averaged["linear.weight"][list(ROWS)])
    with pytest.raises(UsageError, match="new_head of a sweep takes ImageNet's own rows of the data's classes"):
        load_start(sweep_of(tmp_path, birds, path))
    lines = []  # an evaluation takes them without being asked
    subject = load_subject(path, birds, {"model": "resnet8"}, say=lines.append)
    assert torch.equal(subject.model.linear.weight, plain["linear.weight"][list(ROWS)])
    assert "of the 1000 classes of its last layer those of the data are taken" in lines[-1]
    kept = torch.load(f"{sweep.folder}/start.pt", weights_only=True)
    assert kept["classes"] == [imagenet_wnids()[row] for row in ROWS], "in which order its rows are"
    start = load_subject(f"{sweep.folder}/start.pt", birds, {"model": "resnet8"}, say=lines.append)
    assert torch.equal(start.model.linear.weight, model.linear.weight)


@pytest.mark.slow
def test_the_readmes_own_images_and_model(tmp_path):
    """The section's commands as they stand, with flags that make the sweep small."""
    colors = {"red": (230, 0, 0), "green": (0, 230, 0), "blue": (0, 0, 230), "white": (230,) * 3, "black": (20,) * 3}
    generator = random.Random(1)
    for split, images in (("train", 12), ("val", 8)):
        for name, color in colors.items():
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for number in range(images):
                shade = tuple(part + generator.randrange(25) for part in color)
                Image.new("RGB", (72, 64), shade).save(folder / f"{number}.jpg")
    torch.manual_seed(0)
    published = build_model("resnet50", 1000)
    for norm in published.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.momentum = 1.0
    published(torch.randn(16, 3, 64, 64))  # for the running statistics
    content = {"epoch": 90, "state_dict": {f"module.{name}": value for name, value in published.state_dict().items()}}
    torch.save(content, tmp_path / "resnet50.pth")
    section = (ROOT / "README.md").read_text().partition("## Your own images and model\n")[2].partition("\n## ")[0]
    block = section.strip().partition("\n\n")[0]
    make, make_val, sweep = (shlex.split(line, comments=True) for line in block.splitlines())
    small = [
        "--head-steps", 40, "--regularizers", "l2", "--epochs", 1, "--images-per-epoch", 16, "--batch-size", 8,
        "--robust-images", 8, "--seeds", 0, "--image-size", 64, "--no-augment", "--name", "s",
    ]  # fmt: skip
    for words in (make, make_val, [*sweep, *map(str, small)]):
        script = [str(ROOT / word) if word.startswith("sweeps/") else word for word in words[1:]]
        done = subprocess.run(
            [sys.executable, *script], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True,
            text=True, timeout=400,
        )  # fmt: skip
        assert done.returncode == 0, (words, done.stdout, done.stderr)
    before, after = map(float, re.search(r"accuracy ([\d.]+) % before, ([\d.]+) % after, on val", done.stdout).groups())
    assert before < 60 < after, "random features tell five colors apart once a layer has learnt which is which"
    order = ["training a new last layer for 5 classes, 40 steps", "start: accuracy", "calibrating", "searching", "→"]
    assert order == sorted(order, key=done.stdout.index)
    kept = Sweep.load("s", str(tmp_path / "runs"))
    assert (kept.trial.checkpoint, kept.source) == (str(tmp_path / "runs/s/start.pt"), str(tmp_path / "resnet50.pth"))
