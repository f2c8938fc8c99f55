"""Webdataset shards: find, read, write, make and verify them.

    python -m trainer.shards --images CLASS_FOLDERS --split train --out SHARDS    # --help shows the other sources

Files in reading order:

    layout      names of shards, folders and splits
    meta        meta.json and classes.json
    tar         what is in a shard
    labels      class indices of samples
    scan        counts and checks of shards without a description
    find        `Shards`: the shards of a split, wherever another tool put them
    write       `write_shards`: shards and their meta.json
    sources     images to make shards of: class folders
    imagenet, tfrecords    further sources
    images      images checked and re-encoded
    processes   several processes, results in order
    make        all shards of a split from a source
    verify      checksums, counts and every image
    __main__    the command line
"""

from trainer.shards.find import (
    MissingSplit,
    Shards,
    evaluation_splits,
    named_classes,
    read_shards,
    skipped_samples,
)
from trainer.shards.write import Sample, encode_jpeg, write_shards

__all__ = [
    "MissingSplit",
    "Sample",
    "Shards",
    "encode_jpeg",
    "evaluation_splits",
    "named_classes",
    "read_shards",
    "skipped_samples",
    "write_shards",
]
