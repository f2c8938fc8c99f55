"""Read and decode batches of shards: which samples a batch holds is a function of its request only.

The batches of a rank are divided among its readers, one for each loader process. A request names a batch of a reader;
whichever process gets it gives the same samples. A process that gets a reader's batches one after the other, as
PyTorch's DataLoader gives them out, reads on where it was.
"""

import dataclasses
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice

import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from trainer.broken_images import VERIFY, too_many
from trainer.cache import ShardCache
from trainer.config import UsageError
from trainer.preprocess import DecodeError, Transform
from trainer.shards import Shards
from trainer.shards.labels import class_index
from trainer.shards.tar import open_samples

SHUFFLE_BUFFER = 1000


@dataclass(frozen=True, slots=True)
class Request:
    """One batch, counted from 0 within its reader's part of the epoch."""

    epoch: int
    reader: int
    batch: int


@dataclass(frozen=True, slots=True)
class Encoded:
    """One sample as it is read: its shard, its key there, the encoded image and its class index."""

    shard: str
    key: str
    image: bytes
    label: int


@dataclass(frozen=True, slots=True)
class Chosen:
    """A sample to decode.

    Args:
        index: number of the example in its split, in evaluation.
    """

    encoded: Encoded
    random: random.Random
    index: int | None = None


@dataclass(frozen=True, slots=True)
class Decoded:
    """A sample of a batch; the pixels of one that cannot be decoded are zeros."""

    pixels: UInt8[Tensor, "3 h w"]
    label: int
    index: int | None
    whole: bool


RawBatch = tuple[UInt8[Tensor, "b 3 h w"], Int[Tensor, " b"], Int[Tensor, " b"] | None, Bool[Tensor, " b"]]
"""Pixels, labels, indices in evaluation, and which images could be decoded."""


@dataclass(kw_only=True)
class BatchReader(Dataset):
    """Batches of one rank by request.

    Args:
        num_readers: number of readers of each worker.
    """

    shards: Shards
    transform: Transform
    cache: ShardCache
    batch_size: int
    rank: int
    world_size: int
    num_readers: int

    def __post_init__(self) -> None:
        self._samples: Iterator[Decoded] = iter(())
        self._next: Request | None = None  # what `_samples` goes on with

    def requests(self, epoch: int, first_step: int = 0) -> list[Request]:
        """The batches of an epoch from a step on, in order."""
        raise NotImplementedError

    def __getitem__(self, request: Request) -> RawBatch:
        if request != self._next:
            self._samples = self._decoded(self._chosen(request))
        self._next = None  # an error leaves no place to go on from
        samples = list(islice(self._samples, self.batch_size))
        self._next = dataclasses.replace(request, batch=request.batch + 1)
        indices = None if samples[0].index is None else torch.tensor([sample.index for sample in samples])
        return (
            default_collate([sample.pixels for sample in samples]),  # into shared memory
            torch.tensor([sample.label for sample in samples]),
            indices,
            torch.tensor([sample.whole for sample in samples]),
        )

    def _chosen(self, request: Request) -> Iterator[Chosen]:
        """Samples of the request's reader from the requested batch on."""
        raise NotImplementedError

    def _decoded(self, chosen: Iterator[Chosen]) -> Iterator[Decoded]:
        side = self.transform.size
        size = None if side is None else torch.Size((3, side, side))
        broken: set[tuple[str, str]] = set()  # each once, however many passes an epoch has
        waiting = []  # broken samples before the size of any image is known
        for read, sample in enumerate(chosen, start=1):
            encoded = sample.encoded
            try:
                pixels = self.transform(encoded.image, sample.random)
            except DecodeError as error:
                broken.add((encoded.shard, encoded.key))
                if why := self.too_many(len(broken), read):
                    raise UsageError(
                        f"{encoded.shard}: image {encoded.key} cannot be decoded ({error}), and {why}; {VERIFY}"
                    ) from None
                if size is None:
                    waiting.append(sample)
                else:
                    yield _blank(sample, size)
                continue
            if size is not None and size != pixels.shape:
                raise UsageError(
                    f"{encoded.shard}: image {encoded.key} is {pixels.shape[2]}x{pixels.shape[1]} pixels, "
                    f"others are {size[2]}x{size[1]}; give the side they shall have as `image_size`"
                )
            size = pixels.shape
            while waiting:
                yield _blank(waiting.pop(0), size)
            yield Decoded(pixels, encoded.label, sample.index, True)
        for sample in waiting:  # nothing else was read, so any size will do
            yield _blank(sample, torch.Size((3, 1, 1)))

    def too_many(self, broken: int, read: int) -> str:
        """Why a reader gives up after so many broken images, empty if it does not."""
        return too_many(broken, read, self.shards)

    def _read(self, shard: int, numbers: Iterable[int]) -> Iterator[Encoded]:
        """The samples of a shard that have these numbers, in their order; other images are not read.

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


def _blank(sample: Chosen, size: torch.Size) -> Decoded:
    return Decoded(torch.zeros(size, dtype=torch.uint8), sample.encoded.label, sample.index, False)


@dataclass(kw_only=True)
class TrainReader(BatchReader):
    """Endless passes over the shards, cut into epochs of a fixed number of steps.

    Args:
        steps: number of batches of this rank in an epoch.
    """

    seed: int
    steps: int

    def requests(self, epoch: int, first_step: int = 0) -> list[Request]:
        readers = self.num_readers
        return [Request(epoch, step % readers, step // readers) for step in range(first_step, self.steps)]

    def _chosen(self, request: Request) -> Iterator[Chosen]:
        wanted = len(range(request.reader, self.steps, self.num_readers)) * self.batch_size
        skipped = request.batch * self.batch_size
        name = f"{self.seed}/{request.epoch}/{self.rank}/{request.reader}"
        reader = self.rank * self.num_readers + request.reader
        source = islice(self._endless(request.epoch, reader, self.world_size * self.num_readers), wanted)
        for number, encoded in enumerate(_shuffled(source, random.Random(name))):
            if number >= skipped:
                yield Chosen(encoded, random.Random(f"{name}/{number}"))

    def _endless(self, epoch: int, reader: int, num_readers: int) -> Iterator[Encoded]:
        """Samples of the shards of one reader, of all that all workers have, pass after pass."""
        first, step = (0, 1)
        if fewer := len(self.shards.paths) < num_readers:  # share samples instead of shards
            first, step = reader, num_readers
        for number in count():
            order = _permutation(len(self.shards.paths), f"{self.seed}/{epoch}/{number}")
            for shard in order if fewer else order[reader::num_readers]:
                samples = _permutation(self.shards.counts[shard], f"{self.seed}/{epoch}/{number}/{shard}")
                yield from self._read(shard, samples[first::step])
                first = (first - len(samples)) % step


@dataclass(kw_only=True)
class EvalReader(BatchReader):
    """Each chosen example once, in batches that are the same for any number of readers.

    Args:
        examples: numbers of the chosen examples in the split, ascending.
    """

    examples: Sequence[int]

    def requests(self, epoch: int, first_step: int = 0) -> list[Request]:
        parts = [self._batches(reader) for reader in range(self.num_readers)]
        longest = max(map(len, parts))
        in_turn = (
            (reader, batch) for batch in range(longest) for reader, part in enumerate(parts) if batch < len(part)
        )
        return [Request(epoch, reader, batch) for reader, batch in in_turn][first_step:]

    def _batches(self, reader: int) -> range:
        """A reader's run of batches, so that a shard has few readers."""
        batches, readers = math.ceil(len(self.examples) / self.batch_size), self.world_size * self.num_readers
        place = self.rank * self.num_readers + reader
        return range(batches * place // readers, batches * (place + 1) // readers)

    def _chosen(self, request: Request) -> Iterator[Chosen]:
        batches = self._batches(request.reader)
        examples = self.examples[batches.start * self.batch_size : batches.stop * self.batch_size]
        wanted = {self.shards.numbers[example]: example for example in examples}
        begin, skipped = 0, request.batch * self.batch_size
        for shard, size in enumerate(self.shards.counts):
            found = [number for number in wanted if begin <= number < begin + size]
            here, skipped = found[skipped:], max(skipped - len(found), 0)
            if here:
                samples = self._read(shard, (number - begin for number in here))
                for number, encoded in zip(here, samples, strict=True):
                    yield Chosen(encoded, random.Random(number), wanted[number])
            begin += size


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
