"""Stream batches from shards: order is a function of (seed, epoch, rank, loader worker) only.

Training draws its own permutation of the shards for every epoch, splits it by rank and loader worker,
shuffles samples in a buffer and repeats until the epoch has its fixed number of steps, so every rank takes
the same number however unevenly the shards divide. Evaluation reads every example exactly once.
"""

import io
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
import webdataset as wds
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from webdataset.gopen import gopen_schemes

from trainer.config import UsageError
from trainer.locations import SCHEMES, open_file
from trainer.shards import IMAGE_SUFFIXES, Shards

MEAN = (0.485, 0.456, 0.406)  # ImageNet's channel means and deviations, pixel fractions of 1
STD = (0.229, 0.224, 0.225)
SHUFFLE_BUFFER = 1000
MEMBERS = {*(suffix[1:] for suffix in IMAGE_SUFFIXES), "cls"}


@dataclass(frozen=True)
class Batch:
    """Images standardised by ImageNet's mean and deviation, and their class indices."""

    images: Float[Tensor, "b 3 h w"]
    labels: Int[Tensor, " b"]

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        return Batch(self.images.to(device, non_blocking=True), self.labels.to(device, non_blocking=True))


def standardise(pixels: Float[Tensor, "*b 3 h w"]) -> Float[Tensor, "*b 3 h w"]:
    """Pixel fractions in [0, 1] to model input."""
    mean, std = pixels.new_tensor(MEAN), pixels.new_tensor(STD)
    return (pixels - mean[:, None, None]) / std[:, None, None]


# webdataset runs curl for web addresses, whose death may go unseen, and cannot read object stores.
gopen_schemes.update({scheme: lambda url, *mode, **options: open_file(url) for scheme in SCHEMES})


class _Stream(IterableDataset):
    """Decoded samples of one rank and loader worker."""

    def __init__(
        self, shards: Shards, rank: int, world_size: int, seed: int, steps: int | None, batch_size: int
    ) -> None:
        self.shards, self.rank, self.world_size, self.seed = shards, rank, world_size, seed
        self.steps, self.batch_size = steps, batch_size
        self.epoch = 0

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        lane, lanes = self.rank * workers + worker, self.world_size * workers
        if self.steps is None:
            # Every lane reads all shards and takes each lanes-th sample: exact for any split of any shards.
            for index, sample in enumerate(_read(list(self.shards.paths))):
                if index % lanes == lane:
                    yield _decode(sample)
            return
        # Loader workers take batches in turn, so worker i delivers the batches i, i + workers, …
        wanted = len(range(worker, self.steps, workers)) * self.batch_size
        generator = random.Random(f"{self.seed}/{self.epoch}/{self.rank}/{worker}")
        yield from map(_decode, _shuffled(islice(self._endless(lane, lanes), wanted), generator))

    def _endless(self, lane: int, lanes: int) -> Iterator[dict[str, Any]]:
        """Samples of this lane's shards, pass after pass."""
        passes = 0
        while True:
            order = list(self.shards.paths)
            random.Random(f"{self.seed}/{self.epoch}/{passes}").shuffle(order)
            if len(order) >= lanes:
                yield from _read(order[lane::lanes])
            else:  # fewer shards than lanes: share samples instead of shards
                yield from (s for i, s in enumerate(_read(order)) if i % lanes == lane)
            passes += 1


def train_loader(
    shards: Shards, *, rank: int, world_size: int, seed: int, steps: int, batch_size: int, loader_workers: int
) -> "Loader":
    """Endless-looking epochs of exactly `steps` batches on every rank.

    Raises:
        UsageError: if there are fewer samples than one global batch.
    """
    if shards.total < batch_size * world_size:
        raise UsageError(
            f"{shards.total} {shards.split} images are fewer than one step of {world_size} worker(s) x batch size "
            f"{batch_size}; lower --batch-size or --workers-per-trial"
        )
    return Loader(_Stream(shards, rank, world_size, seed, steps, batch_size), batch_size, loader_workers)


def eval_loader(shards: Shards, *, rank: int, world_size: int, batch_size: int, loader_workers: int) -> "Loader":
    """Every example of the split exactly once over all ranks; ranks may have unequal numbers of batches."""
    return Loader(_Stream(shards, rank, world_size, 0, None, batch_size), batch_size, loader_workers)


class Loader:
    """Batches of a stream; its loader processes live no longer than one epoch's iteration."""

    def __init__(self, stream: _Stream, batch_size: int, loader_workers: int) -> None:
        self._stream, self._batch_size, self._loader_workers = stream, batch_size, loader_workers

    def epoch(self, number: int = 0) -> Iterator[Batch]:
        """The batches of one epoch."""
        self._stream.epoch = number
        # Forking a process that holds Ray's threads can deadlock.
        context = "forkserver" if self._loader_workers else None
        loader: DataLoader = DataLoader(
            self._stream, self._batch_size, num_workers=self._loader_workers, multiprocessing_context=context
        )
        for images, labels in loader:
            yield Batch(standardise(images.float() / 255), labels)


def _read(paths: list[str]) -> Iterator[dict[str, Any]]:
    """Raw samples of shards in order; members other than images and classes are never opened."""
    yield from wds.WebDataset(
        paths,
        shardshuffle=False,
        nodesplitter=None,
        workersplitter=None,
        empty_check=False,
        select_files=lambda name: name.rpartition(".")[2].lower() in MEMBERS,
    )


def _shuffled(samples: Iterator[dict[str, Any]], generator: random.Random) -> Iterator[dict[str, Any]]:
    """The samples through a shuffle buffer that drains at the end, so none is lost and none comes twice."""
    buffer = list(islice(samples, SHUFFLE_BUFFER))
    while buffer:
        position = generator.randrange(len(buffer))
        buffer[position], buffer[-1] = buffer[-1], buffer[position]
        yield buffer.pop()
        buffer.extend(islice(samples, 1))


def _decode(sample: dict[str, Any]) -> tuple[Tensor, int]:
    """uint8 pixels `(3, h, w)` and class index."""
    encoded = next(sample[suffix[1:]] for suffix in IMAGE_SUFFIXES if suffix[1:] in sample)
    with Image.open(io.BytesIO(encoded)) as image:
        rgb = image.convert("RGB")
    pixels = torch.frombuffer(bytearray(rgb.tobytes()), dtype=torch.uint8)
    return pixels.reshape(rgb.height, rgb.width, 3).permute(2, 0, 1), int(sample["cls"])
