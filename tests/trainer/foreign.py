"""Shards as other tools write them, and what is read from them."""

import dataclasses
import json

import pytest
from pictures import encoded, tar

from trainer.cache import ShardCache
from trainer.config import UsageError
from trainer.data import LoaderOptions, eval_loader, train_loader
from trainer.normalization import IMAGENET
from trainer.preprocess import Transform
from trainer.shards import read_shards

CLASSES = ["ant", "bee", "cat"]


def pairs(*labels, first=0):
    """Members of samples with these labels, keys counted on from `first`."""
    files = {}
    for number, label in enumerate(labels, start=first):
        files |= {f"{number:03d}.jpg": encoded(number), f"{number:03d}.cls": str(label).encode()}
    return files


def put(folder, shards, classes=CLASSES):
    """Write shards (name → members) and classes.json."""
    for name, files in shards.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        tar(files, folder / name)
    if classes is not None:
        (folder / "classes.json").write_text(json.dumps(classes))
    return folder


def read(shards, cache=None):
    """Labels in order of evaluation; training reads the same samples."""
    options = LoaderOptions(normalization=IMAGENET, batch_size=2, cache=cache or ShardCache())
    with eval_loader(shards, Transform(16, train=False), options) as loader:
        batches = list(loader.epoch())
    assert all(batch.images.isfinite().all() for batch in batches)
    labels = [int(label) for batch in batches for label in batch.labels]
    options = dataclasses.replace(options, batch_size=1)
    with train_loader(shards, Transform(16, train=True), options, seed=0, steps=len(labels)) as loader:
        assert sorted(int(label) for batch in loader.epoch() for label in batch.labels) == sorted(labels)
    return labels


def refusal(location, split="train"):
    with pytest.raises(UsageError) as refused:
        read_shards(location, split)
    assert "\n" not in str(refused.value)
    return str(refused.value)
