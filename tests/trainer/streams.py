"""Loaders of small images as they are."""

from trainer.data import LoaderOptions
from trainer.normalization import IMAGENET
from trainer.preprocess import Transform

AS_IS = Transform(None, train=False)


def options(batch_size, **others):
    return LoaderOptions(normalization=IMAGENET, batch_size=batch_size, **others)
