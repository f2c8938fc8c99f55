"""Stream batches from shards: order is a function of (seed, epoch, rank, loader worker) only.

Training draws its own permutation of the shards for every epoch, and of the samples in each of them, so that an epoch
that is shorter than a shard has other samples of it each time. It splits the shards by rank and loader worker, shuffles
samples in a buffer and repeats until the epoch has its fixed number of steps, so every rank takes the same number
however unevenly the shards divide. An epoch can be entered at any step: what comes before is read but not decoded.
Evaluation reads every example exactly once, in batches that do not depend on the number of readers.
"""

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from trainer.cache import ShardCache
from trainer.errors import FieldError, UsageError
from trainer.normalization import Normalization
from trainer.preprocess import DecodeError, Transform
from trainer.shards import Shards
from trainer.shards.labels import class_index
from trainer.shards.tar import open_samples

SHUFFLE_BUFFER = 1000
MAX_BROKEN = 0.001  # fraction of a split's images that may be undecodable
FEW_BROKEN = 32  # beyond so many, those that were read so far may not be broken for the most part
VERIFY = "`python -m trainer.shards --verify` lists them"


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


@dataclass(frozen=True, slots=True)
class Encoded:
    """One sample as it is read: its shard, its key there, the encoded image and its class index."""

    shard: str
    key: str
    image: bytes
    label: int


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
        broken: set[tuple[str, str]] = set()  # each once, however many passes an epoch has
        waiting = []  # labels and indices of broken images before the size of any is known
        for read, (sample, index, randomness) in enumerate(self._samples(worker, workers), start=1):
            label = sample.label
            try:
                pixels = self.transform(sample.image, randomness)
            except DecodeError as error:
                broken.add((sample.shard, sample.key))
                why = ""
                if len(broken) > self.allowed:
                    why = f"more than {MAX_BROKEN:.1%} of the {self.shards.total} {self.shards.split} images are so"
                elif len(broken) > FEW_BROKEN and 2 * len(broken) > read:  # a large split that is no good
                    why = f"so are {len(broken)} of the first {read} {self.shards.split} images that were read"
                if why:
                    raise UsageError(
                        f"{sample.shard}: image {sample.key} cannot be decoded ({error}), and {why}; {VERIFY}"
                    ) from None
                if size is None:
                    waiting.append((label, index))
                else:
                    yield torch.zeros(size, dtype=torch.uint8), label, index, False
                continue
            if size is not None and size != pixels.shape:
                raise UsageError(
                    f"{sample.shard}: image {sample.key} is {pixels.shape[2]}x{pixels.shape[1]} pixels, "
                    f"others are {size[2]}x{size[1]}; give the side they shall have as `image_size`"
                )
            size = pixels.shape
            while waiting:
                yield torch.zeros(size, dtype=torch.uint8), *waiting.pop(0), False
            yield pixels, label, index, True
        for label, index in waiting:  # nothing else was read, so any size will do
            yield torch.zeros((3, 1, 1), dtype=torch.uint8), label, index, False

    @property
    def allowed(self) -> float:
        """Broken images that one reader may see."""
        return MAX_BROKEN * self.shards.total

    def _samples(self, worker: int, workers: int) -> Iterator[tuple[Encoded, int, random.Random]]:
        """Encoded samples of one loader worker, their index and the randomness of their transform."""
        raise NotImplementedError

    def _read(self, shard: int, numbers: Iterable[int]) -> Iterator[Encoded]:
        """Those samples of a shard that have these numbers, in their order; other images are not read.

        Raises:
            UsageError: if the shard is damaged, has other samples than it should or a label that is no class index.
        """
        path, wanted = self.shards.paths[shard], self.shards.counts[shard]
        with (
            self.cache.open(path, self.shards.checksums[shard]) as stream,
            open_samples(path, stream) as (plain, contents),
        ):
            entries = contents.entries
            if len(entries) != wanted:
                ends = "ends after" if len(entries) < wanted else "holds"
                raise UsageError(f"{path}: {ends} {len(entries)} samples, it should have {wanted}")
            for entry in (entries[number] for number in numbers):
                plain.seek(entry.offset)
                label = class_index(path, entry.key, entry.label, self.shards.classes)
                yield Encoded(path, entry.key, plain.read(entry.size), label)


class _TrainStream(_Stream):
    """Endless passes over the shards, cut into epochs of a fixed number of steps."""

    def __init__(self, *args: Any, seed: int, steps: int, batch_size: int) -> None:
        super().__init__(*args)
        self.seed, self.steps, self.batch_size = seed, steps, batch_size

    def _samples(self, worker: int, workers: int) -> Iterator[tuple[Encoded, int, random.Random]]:
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

    def _endless(self, epoch: int, lane: int, lanes: int) -> Iterator[Encoded]:
        """Samples of this lane's shards, pass after pass."""
        first, step = (0, 1)
        if fewer := len(self.shards.paths) < lanes:  # share samples instead of shards
            first, step = lane, lanes
        for number in count():
            order = _permutation(len(self.shards.paths), f"{self.seed}/{epoch}/{number}")
            for shard in order if fewer else order[lane::lanes]:
                samples = _permutation(self.shards.counts[shard], f"{self.seed}/{epoch}/{number}/{shard}")
                yield from self._read(shard, samples[first::step])
                first = (first - len(samples)) % step


class _EvalStream(_Stream):
    """Chosen examples once, in whole batches: the same ones, in the same company, for any number of lanes."""

    def __init__(self, *args: Any, chosen: Sequence[int], batch_size: int) -> None:
        super().__init__(*args)
        self.chosen, self.batch_size = chosen, batch_size

    def _samples(self, worker: int, workers: int) -> Iterator[tuple[Encoded, int, random.Random]]:
        lane, lanes = self.rank * workers + worker, self.world_size * workers
        batches = math.ceil(len(self.chosen) / self.batch_size)
        # One run of batches for each lane, from the shards that hold it.
        first, last = (batches * edge // lanes * self.batch_size for edge in (lane, lane + 1))
        wanted = {self.shards.numbers[index]: index for index in self.chosen[first:last]}
        begin = 0
        for shard, size in enumerate(self.shards.counts):
            here = [number for number in wanted if begin <= number < begin + size]
            if here:
                samples = self._read(shard, (number - begin for number in here))
                for number, sample in zip(here, samples, strict=True):
                    yield sample, wanted[number], random.Random(number)
            begin += size


class Loader:
    """Batches of a stream on a device; close it, and its loader processes end."""

    def __init__(
        self,
        stream: _Stream,
        normalization: Normalization,
        batch_size: int,
        loader_workers: int | None,
        device: torch.device,
    ) -> None:
        self._stream, self._normalization, self._device = stream, normalization, device
        workers: dict[str, Any] = {}
        if loader_workers:  # forking a process that holds Ray's threads can deadlock
            workers = {"multiprocessing_context": "forkserver", "persistent_workers": True}
        self._loader: DataLoader | None = DataLoader(
            stream, batch_size, num_workers=loader_workers or 0, pin_memory=device.type == "cuda", **workers
        )

    def epoch(self, number: int = 0, first_step: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from a step on; the steps before it are skipped without decoding."""
        self._stream.position.copy_(torch.tensor([number, first_step]))
        for pixels, labels, indices, decoded in self._batches():
            images = self._normalization.normalize(pixels.to(self._device, non_blocking=True))
            if not decoded.all():
                images[~decoded.to(self._device)] = float("nan")
            yield Batch(images, labels.to(self._device, non_blocking=True), indices if int(indices[0]) >= 0 else None)

    def _batches(self) -> Iterator[Any]:
        """What the loader delivers; an error of the user's is one line, whichever process it comes from."""
        assert self._loader is not None, "the loader is closed"
        try:
            yield from self._loader
        except UsageError as error:
            # PyTorch puts the trace of the loader process before it.
            raise UsageError(str(error).rpartition(f"{UsageError.__name__}: ")[2].strip()) from None

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
    loader_workers: int | None = 0,
    device: torch.device | None = None,
    cache: ShardCache | None = None,
) -> Loader:
    """Epochs of exactly `steps` batches on every rank.

    Raises:
        UsageError: if there are fewer samples than one global batch.
    """
    if shards.total < batch_size * world_size:
        raise FieldError(
            "batch_size",
            batch_size,
            f"{shards.total} {shards.split} images are fewer than one step of {world_size} worker(s) x batch size "
            f"{batch_size}; lower it, or `workers`",
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
    loader_workers: int | None = 0,
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


def refuse_broken(broken: float | int, asked: int, shards: Shards, passes: int = 1) -> None:
    """Refuse an evaluation or an epoch for images that could not be decoded, counted over all workers.

    Args:
        broken: their number.
        asked: examples that were to be evaluated or trained on, over all passes.
        shards: the split they are of.
        passes: how often the same image may have been counted.

    Raises:
        UsageError: if they are more than 0.1 % of the split, or most of those asked for.
    """
    if broken > MAX_BROKEN * shards.total * passes or 2 * broken > asked:
        raise UsageError(
            f"{broken:.0f} of {asked} {shards.split} images cannot be decoded, and at most {MAX_BROKEN:.1%} of the "
            f"split may be so; {VERIFY}"
        )


def spread(total: int, wanted: int) -> Sequence[int]:
    """Numbers of `wanted` examples of a split of `total`, always the same: one out of each of as many equal stretches.

    Which one is drawn, since classes may come in turn; but not by a trial's seed, so that all trials see the same.
    """
    wanted = min(wanted, total)
    generator = random.Random(f"{total}/{wanted}")
    return [generator.randrange(number * total // wanted, (number + 1) * total // wanted) for number in range(wanted)]


def _permutation(size: int, seed: str) -> list[int]:
    order = list(range(size))
    random.Random(seed).shuffle(order)
    return order


def _shuffled(samples: Iterator[Encoded], generator: random.Random) -> Iterator[Encoded]:
    """The samples through a shuffle buffer that drains at the end, so none is lost and none comes twice."""
    buffer = list(islice(samples, SHUFFLE_BUFFER))
    while buffer:
        position = generator.randrange(len(buffer))
        buffer[position], buffer[-1] = buffer[-1], buffer[position]
        yield buffer.pop()
        buffer.extend(islice(samples, 1))
