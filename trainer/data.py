"""Stream batches from shards: order is a function of (seed, epoch, rank, reader) only.

Training draws its own permutation of the shards for every epoch, and of the samples in each of them, so that an epoch
that is shorter than a shard has other samples of it each time. It splits the shards by rank and reader, shuffles
samples in a buffer and repeats until the epoch has its fixed number of steps, so every rank takes the same number
however unevenly the shards divide. An epoch can be entered at any step: what comes before is read but not decoded.
Evaluation reads every example exactly once, in batches that do not depend on the number of readers.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import DataLoader

from trainer.cache import ShardCache
from trainer.config import Trial
from trainer.distributed import rank, world_size
from trainer.errors import FieldError, UsageError
from trainer.normalization import Normalization
from trainer.preprocess import Transform
from trainer.readers import BatchReader, EvalReader, Request, TrainReader
from trainer.shards import Shards


@dataclass(frozen=True)
class Batch:
    """Images normalized by the trial's mean and deviation, and their class indices.

    An image that cannot be decoded is all NaN, which losses leave out and count.

    Args:
        indices: number of each example in its split, in evaluation; None in training.
    """

    images: Float[Tensor, "b 3 h w"]
    labels: Int[Tensor, " b"]
    indices: Int[Tensor, " b"] | None = None


@dataclass(frozen=True, kw_only=True)
class LoaderOptions:
    """What loaders for training and evaluation have in common.

    Args:
        batch_size: number of images in each batch of this worker.
        loader_workers: number of loader processes, 0 to read in this one.
    """

    normalization: Normalization
    batch_size: int
    rank: int = 0
    world_size: int = 1
    loader_workers: int = 0
    device: torch.device = torch.device("cpu")
    cache: ShardCache = ShardCache()

    @classmethod
    def of_worker(cls, trial: Trial, device: torch.device, cache: ShardCache | None) -> "LoaderOptions":
        """Options of this worker of a trial."""
        return cls(
            normalization=trial.normalization,
            batch_size=trial.batch_size,
            rank=rank(),
            world_size=world_size(),
            loader_workers=trial.loader_workers or 0,
            device=device,
            cache=cache or ShardCache(),
        )

    def for_reader(self) -> dict[str, Any]:
        """Arguments of a `BatchReader`."""
        return {
            "cache": self.cache,
            "batch_size": self.batch_size,
            "rank": self.rank,
            "world_size": self.world_size,
            "num_readers": max(self.loader_workers, 1),
        }


class Loader:
    """Batches of a reader on a device; its loader processes end when it is closed.

    Args:
        reader: reads the batches, in the loader processes.
    """

    def __init__(self, reader: BatchReader, options: LoaderOptions) -> None:
        self._reader, self._options = reader, options
        self._requests: list[Request] = []  # of the current epoch, sent to the loader processes one by one
        processes: dict[str, Any] = {}
        if options.loader_workers:  # forking a process that holds Ray's threads can deadlock
            processes = {"multiprocessing_context": "forkserver", "persistent_workers": True}
        self._loader: DataLoader | None = DataLoader(
            reader,
            batch_size=None,
            sampler=self._requests,
            num_workers=options.loader_workers,
            pin_memory=options.device.type == "cuda",
            **processes,
        )

    def epoch(self, number: int = 0, first_step: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from a step on; the steps before it are skipped without decoding."""
        self._requests[:] = self._reader.requests(number, first_step)
        normalization, device = self._options.normalization, self._options.device
        for pixels, labels, indices, decoded in self._batches():
            images = normalization.normalize(pixels.to(device, non_blocking=True))
            if not decoded.all():
                images[~decoded.to(device)] = float("nan")
            yield Batch(images, labels.to(device, non_blocking=True), indices)

    def _batches(self) -> Iterator[Any]:
        """What the loader delivers; an error of the user's is one line, whichever process it comes from."""
        assert self._loader is not None, "the loader is closed"
        try:
            yield from self._loader
        except UsageError as error:
            # PyTorch puts the trace of the loader process before it.
            raise type(error)(str(error).rpartition(f"{type(error).__name__}: ")[2].strip()) from None

    def close(self) -> None:
        """End the loader processes."""
        self._loader = None

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()


def train_loader(shards: Shards, transform: Transform, options: LoaderOptions, *, seed: int, steps: int) -> Loader:
    """Epochs of exactly `steps` batches on every rank.

    Raises:
        UsageError: if there are fewer samples than one global batch.
    """
    if shards.total < options.batch_size * options.world_size:
        raise FieldError(
            "batch_size",
            options.batch_size,
            f"{shards.total} {shards.split} images are fewer than one step of {options.world_size} worker(s) x batch "
            f"size {options.batch_size}; lower it, or `workers`",
        )
    reader = TrainReader(shards=shards, transform=transform, seed=seed, steps=steps, **options.for_reader())
    return Loader(reader, options)


def eval_loader(shards: Shards, transform: Transform, options: LoaderOptions, *, examples: int | None = None) -> Loader:
    """Every example, or `examples` of them spread over the split, exactly once over all ranks.

    The batches are the same for any number of ranks and loader processes; ranks may have unequal numbers of them.
    """
    chosen = spread(shards.total, shards.total if examples is None else examples)
    return Loader(EvalReader(shards=shards, transform=transform, examples=chosen, **options.for_reader()), options)


def spread(total: int, wanted: int) -> Sequence[int]:
    """Numbers of `wanted` examples of a split of `total`, always the same: one out of each of as many equal stretches.

    Which one is drawn, since classes may come in turn; but not by a trial's seed, so that all trials see the same.
    """
    wanted = min(wanted, total)
    generator = random.Random(f"{total}/{wanted}")
    return [generator.randrange(number * total // wanted, (number + 1) * total // wanted) for number in range(wanted)]
