"""All of a split in one batch."""

from trainer.data import LoaderOptions, eval_loader
from trainer.normalization import IMAGENET
from trainer.preprocess import Transform
from trainer.shards import read_shards


def whole_split(digits, split):
    options = LoaderOptions(normalization=IMAGENET, batch_size=999)
    loader = eval_loader(read_shards(digits, split), Transform(None, train=False), options)
    (batch,) = loader.epoch()
    return batch
