"""The embedded data set: scikit-learn's handwritten digits as 32x32 RGB JPEG shards, no download."""

from collections.abc import Iterator

import numpy as np
from PIL import Image

from trainer.locations import read_json
from trainer.shards import Sample, encode_jpeg, write_shards

SPLITS = {"train": 0.7, "val": 0.2, "test": 0.1}
SIDE = 32


def write_digits(folder: str, seed: int = 0) -> None:
    """Write train, val and test shards of the 1,797 digits (Alpaydin, Kaynak 1998), shuffled by seed.

    Does nothing if the folder, a path or URL, already holds all splits.
    """
    meta = read_json(f"{folder}/meta.json")
    if meta is not None and set(SPLITS) <= set(meta["splits"]):
        return
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.target))
    ends = np.cumsum([round(share * len(order)) for share in SPLITS.values()])[:-1]
    classes = [str(name) for name in digits.target_names]
    for split, rows in zip(SPLITS, np.split(order, ends), strict=True):
        samples = _samples(digits.images, digits.target, rows)
        write_shards(samples, folder, split, classes, "sklearn.datasets.load_digits", per_shard=100)


def _samples(images: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> Iterator[Sample]:
    for row in rows:
        gray = Image.fromarray((images[row] * (255 / 16)).astype(np.uint8))
        picture = gray.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        yield Sample(f"digit_{row:04d}", encode_jpeg(picture), int(labels[row]))
