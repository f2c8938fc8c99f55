"""Stream batches from shards: order is a function of (seed, epoch, rank, loader worker) only.

Training draws its own permutation of the shards for every epoch, splits it by rank and loader worker, shuffles samples
in a buffer and repeats until the epoch has its fixed number of steps, so every rank takes the same number however
unevenly the shards divide. An epoch can be entered at any step: what comes before is read but not decoded. Evaluation
reads every example exactly once, in batches that do not depend on the number of readers.
"""

import math
import random
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import IO, Any

import torch
import webdataset as wds
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from trainer.cache import ShardCache
from trainer.config import UsageError
from trainer.normalization import Normalization
from trainer.preprocess import DecodeError, Transform
from trainer.shards import IMAGE_SUFFIXES, Shards

SHUFFLE_BUFFER = 1000
MEMBERS = {*(suffix[1:] for suffix in IMAGE_SUFFIXES), "cls"}
MAX_BROKEN = 0.001  # fraction of an epoch's images that may be undecodable


@dataclass(frozen=True)
class Batch:
    """Images normalized by the trial's mean and deviation, and their class indices.

    An image that cannot be decoded is all NaN, which losses leave out and count.

    Args:
        images: normalized pixels.
        labels: class indices.
        indices: in evaluation, the number of each example in its split; None in training.
    """

    images: Float[Tensor, "b 3 h w"]
    labels: Int[Tensor, " b"]
    indices: Int[Tensor, " b"] | None = None


class _Stream(IterableDataset):
    """Decoded samples of one rank: pixels, label, index in the split and whether the image could be decoded."""

    def __init__(self, shards: Shards, transform: Transform, rank: int, world_size: int, cache: ShardCache) -> None:
        self.shards, self.transform, self.cache = shards, transform, cache
        self.rank, self.world_size = rank, world_size
        self.position = torch.zeros(2, dtype=torch.int64).share_memory_()  # epoch and first step, seen by all processes

    def __iter__(self) -> Iterator[tuple[UInt8[Tensor, "3 h w"], int, int, bool]]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        side = self.transform.size
        size = None if side is None else torch.Size((3, side, side))
        broken, waiting = 0, []  # waiting: labels and indices of broken images before the size of any is known
        for sample, index, randomness in self._samples(worker, workers):
            label = int(sample["cls"])
            try:
                pixels = self.transform(_image(sample), randomness)
            except DecodeError as error:
                broken += 1
                if broken > MAX_BROKEN * self.expected:
                    raise UsageError(
                        f"{sample['__url__']}: image {sample['__key__']} cannot be decoded ({error}), and more than "
                        f"{MAX_BROKEN:.1%} of the images are so; `python -m trainer.shards --verify` lists them"
                    ) from None
                if size is None:
                    waiting.append((label, index))
                else:
                    yield torch.zeros(size, dtype=torch.uint8), label, index, False
                continue
            if size is not None and size != pixels.shape:
                raise UsageError(
                    f"{sample['__url__']}: image {sample['__key__']} is {pixels.shape[2]}x{pixels.shape[1]} pixels, "
                    f"others are {size[2]}x{size[1]}; give the side they shall have with --image-size"
                )
            size = pixels.shape
            while waiting:
                yield torch.zeros(size, dtype=torch.uint8), *waiting.pop(0), False
            yield pixels, label, index, True

    @property
    def expected(self) -> int:
        """Images of an epoch over all ranks."""
        raise NotImplementedError

    def _samples(self, worker: int, workers: int) -> Iterator[tuple[dict[str, Any], int, random.Random]]:
        """Encoded samples of one loader worker, their index and the randomness of their transform."""
        raise NotImplementedError

    def _read(self, shard: int, start: int = 0, stop: int | None = None) -> Iterator[dict[str, Any]]:
        """Samples start … stop - 1 of a shard; members other than images and classes are never opened.

        Raises:
            UsageError: if the shard is damaged or has fewer samples than it should.
        """
        path, count = self.shards.paths[shard], self.shards.counts[shard]
        stop, found = count if stop is None else stop, 0
        with self.cache.open(path, self.shards.checksums[shard]) as stream:
            try:
                for found, sample in enumerate(_samples_of(path, stream), start=1):
                    if found > start:
                        yield sample
                    if found == stop:
                        return
            except (OSError, ValueError, EOFError, tarfile.TarError) as error:
                reason = str(error.args[0] if error.args else error).partition(" @ ")[0]  # webdataset appends objects
                raise UsageError(f"{path}: damaged after {found} samples ({reason})") from None
        raise UsageError(f"{path}: ends after {found} samples, it should have {count}")


class _TrainStream(_Stream):
    """Endless passes over the shards, cut into epochs of a fixed number of steps."""

    def __init__(self, *args: Any, seed: int, steps: int, batch_size: int) -> None:
        super().__init__(*args)
        self.seed, self.steps, self.batch_size = seed, steps, batch_size

    @property
    def expected(self) -> int:
        return self.steps * self.batch_size * self.world_size

    def _samples(self, worker: int, workers: int) -> Iterator[tuple[dict[str, Any], int, random.Random]]:
        epoch, first = self.position.tolist()
        # Loader workers take batches in turn: worker i delivers the batches i, i + workers, …. The loader asks worker 0
        # first, which after a skip plays the part of the one whose turn it is.
        worker = (worker + first) % workers
        wanted = len(range(worker, self.steps, workers)) * self.batch_size
        skipped = len(range(worker, first, workers)) * self.batch_size
        name = f"{self.seed}/{epoch}/{self.rank}/{worker}"
        source = islice(self._endless(epoch, self.rank * workers + worker, self.world_size * workers), wanted)
        for number, sample in enumerate(_shuffled(source, random.Random(name))):
            if number >= skipped:
                yield sample, -1, random.Random(f"{name}/{number}")

    def _endless(self, epoch: int, lane: int, lanes: int) -> Iterator[dict[str, Any]]:
        """Samples of this lane's shards, pass after pass."""
        passes = 0
        while True:
            order = list(range(len(self.shards.paths)))
            random.Random(f"{self.seed}/{epoch}/{passes}").shuffle(order)
            if len(order) >= lanes:
                yield from chain.from_iterable(map(self._read, order[lane::lanes]))
            else:  # fewer shards than lanes: share samples instead of shards
                yield from islice(chain.from_iterable(map(self._read, order)), lane, None, lanes)
            passes += 1


class _EvalStream(_Stream):
    """Chosen examples once, in whole batches: the same ones, in the same company, for any number of lanes."""

    def __init__(self, *args: Any, chosen: Sequence[int], batch_size: int) -> None:
        super().__init__(*args)
        self.chosen, self.batch_size = chosen, batch_size

    @property
    def expected(self) -> int:
        return len(self.chosen)

    def _samples(self, worker: int, workers: int) -> Iterator[tuple[dict[str, Any], int, random.Random]]:
        lane, lanes = self.rank * workers + worker, self.world_size * workers
        batches = math.ceil(len(self.chosen) / self.batch_size)
        # One run of batches for each lane, from the shards that hold it.
        first, last = (batches * edge // lanes * self.batch_size for edge in (lane, lane + 1))
        wanted = {self.shards.numbers[index]: index for index in self.chosen[first:last]}
        begin = 0
        for shard, count in enumerate(self.shards.counts):
            here = [number for number in wanted if begin <= number < begin + count]
            if here:
                start, stop = here[0] - begin, here[-1] - begin + 1
                for number, sample in enumerate(self._read(shard, start, stop), start=begin + start):
                    if number in wanted:
                        yield sample, wanted[number], random.Random(number)
            begin += count


class Loader:
    """Batches of a stream on a device; close it, and its loader processes end."""

    def __init__(
        self,
        stream: _Stream,
        normalization: Normalization,
        batch_size: int,
        loader_workers: int,
        device: torch.device,
    ) -> None:
        self._stream, self._normalization, self._device = stream, normalization, device
        workers: dict[str, Any] = {}
        if loader_workers:  # forking a process that holds Ray's threads can deadlock
            workers = {"multiprocessing_context": "forkserver", "persistent_workers": True}
        self._loader: DataLoader | None = DataLoader(
            stream, batch_size, num_workers=loader_workers, pin_memory=device.type == "cuda", **workers
        )

    def epoch(self, number: int = 0, first_step: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from a step on; the steps before it are skipped without decoding."""
        self._stream.position.copy_(torch.tensor([number, first_step]))
        assert self._loader is not None, "the loader is closed"
        for pixels, labels, indices, decoded in self._loader:
            images = self._normalization.normalize(pixels.to(self._device, non_blocking=True))
            if not decoded.all():
                images[~decoded.to(self._device)] = float("nan")
            yield Batch(images, labels.to(self._device, non_blocking=True), indices if int(indices[0]) >= 0 else None)

    def close(self) -> None:
        """End the loader processes."""
        self._loader = None

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()


def train_loader(
    shards: Shards,
    transform: Transform,
    normalization: Normalization,
    *,
    rank: int,
    world_size: int,
    seed: int,
    steps: int,
    batch_size: int,
    loader_workers: int = 0,
    device: torch.device | None = None,
    cache: ShardCache | None = None,
) -> Loader:
    """Epochs of exactly `steps` batches on every rank.

    Raises:
        UsageError: if there are fewer samples than one global batch.
    """
    if shards.total < batch_size * world_size:
        raise UsageError(
            f"{shards.total} {shards.split} images are fewer than one step of {world_size} worker(s) x batch size "
            f"{batch_size}; lower --batch-size or --workers-per-trial"
        )
    stream = _TrainStream(
        shards, transform, rank, world_size, cache or ShardCache(), seed=seed, steps=steps, batch_size=batch_size
    )
    return Loader(stream, normalization, batch_size, loader_workers, device or torch.device("cpu"))


def eval_loader(
    shards: Shards,
    transform: Transform,
    normalization: Normalization,
    *,
    rank: int,
    world_size: int,
    batch_size: int,
    examples: int | None = None,
    loader_workers: int = 0,
    device: torch.device | None = None,
    cache: ShardCache | None = None,
) -> Loader:
    """Every example, or `examples` of them spread over the split, exactly once over all ranks.

    The batches are the same for any number of ranks and loader processes; ranks may have unequal numbers of them.
    """
    chosen = spread(shards.total, shards.total if examples is None else examples)
    stream = _EvalStream(
        shards, transform, rank, world_size, cache or ShardCache(), chosen=chosen, batch_size=batch_size
    )
    return Loader(stream, normalization, batch_size, loader_workers, device or torch.device("cpu"))


def spread(total: int, wanted: int) -> Sequence[int]:
    """Numbers of `wanted` examples of a split of `total`, always the same: one out of each of as many equal stretches.

    Which one is drawn, since classes may come in turn; but not by a trial's seed, so that all trials see the same.
    """
    wanted = min(wanted, total)
    generator = random.Random(f"{total}/{wanted}")
    return [generator.randrange(number * total // wanted, (number + 1) * total // wanted) for number in range(wanted)]


def _samples_of(path: str, stream: IO[bytes]) -> Iterator[dict[str, Any]]:
    """Samples of an open shard that have a class."""
    yield from (sample for sample in wds.tariterators.group_by_keys(_members(path, stream)) if "cls" in sample)


def _members(path: str, stream: IO[bytes]) -> Iterator[dict[str, Any]]:
    """Images and classes as webdataset groups them; its own reader takes twice as long, for pipes and compression."""
    with tarfile.open(fileobj=stream, mode="r:") as archive:
        for member in archive:
            if member.isreg() and member.name.rpartition(".")[2].lower() in MEMBERS:
                data = archive.extractfile(member)
                assert data is not None
                yield {"fname": member.name, "data": data.read(), "__url__": path}
            archive.members = []  # type: ignore[attr-defined]  # else it remembers them all
    yield {}  # the end of a shard ends its last sample


def _shuffled(samples: Iterator[dict[str, Any]], generator: random.Random) -> Iterator[dict[str, Any]]:
    """The samples through a shuffle buffer that drains at the end, so none is lost and none comes twice."""
    buffer = list(islice(samples, SHUFFLE_BUFFER))
    while buffer:
        position = generator.randrange(len(buffer))
        buffer[position], buffer[-1] = buffer[-1], buffer[position]
        yield buffer.pop()
        buffer.extend(islice(samples, 1))


def _image(sample: dict[str, Any]) -> bytes:
    return next((sample[suffix[1:]] for suffix in IMAGE_SUFFIXES if suffix[1:] in sample), b"")
