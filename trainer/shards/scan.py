"""Count local shards without a meta.json, and check all their labels, before training.

Only the headers of the tar files and the class members are read, no image.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

from trainer.config import UsageError
from trainer.shards.labels import read_label, too_large
from trainer.shards.tar import open_samples


@dataclass(frozen=True)
class Counted:
    """What the shards of a split hold.

    Args:
        samples: number of samples in each shard.
        skipped: samples without an image or without a class, in all of them.
        example: the first of those, in words.
        empty: class indices without a sample.
    """

    samples: tuple[int, ...]
    skipped: int = 0
    example: str = ""
    empty: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Scan:
    samples: int
    skipped: int
    example: str
    smallest: int
    largest: int
    key: str  # of the largest label
    digest: str  # of keys, sizes and labels
    labels: frozenset[int]


def count_samples(paths: Sequence[str], classes: tuple[str, ...]) -> Counted:
    """Count the samples of a split's shards and check their labels.

    Args:
        paths: paths of the shards, in order.
        classes: name of each class index; empty if they are unknown.

    Raises:
        UsageError: if a shard is not a complete tar file or duplicates another, or a label is not a class index.
    """
    scans = [_scan_again(path, classes) for path in paths]
    whole = {path: scan for path, scan in zip(paths, scans, strict=True) if scan.samples}
    if classes and whole:
        path, scan = max(whole.items(), key=lambda item: item[1].largest)
        if scan.largest >= len(classes):
            smallest = min(scan.smallest for scan in whole.values())
            raise too_large(path, scan.key, scan.largest, len(classes), smallest, scan.largest)
    first: dict[str, str] = {}
    for path, scan in whole.items():
        other = first.setdefault(scan.digest, path)
        if other != path and _same_images(other, path):
            raise UsageError(f"{path}: is a second copy of {Path(other).name}, the same samples; remove one of them")
    examples = (f"in {Path(path).name} {scan.example}" for path, scan in zip(paths, scans, strict=True) if scan.example)
    there = frozenset[int]().union(*(scan.labels for scan in whole.values()))
    return Counted(
        tuple(scan.samples for scan in scans),
        sum(scan.skipped for scan in scans),
        next(examples, ""),
        tuple(index for index in range(len(classes)) if index not in there),
    )


def _scan_again(path: str, classes: tuple[str, ...]) -> _Scan:
    """The scan of a file as it is now, kept for as long as the file does not change."""
    try:
        status = Path(path).stat()
        return _scan(path, classes, (status.st_ino, status.st_size, status.st_mtime_ns))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None


@cache
def _scan(path: str, classes: tuple[str, ...], state: tuple[int, int, int]) -> _Scan:
    digest = sha256()
    smallest, largest, key = 1 << 63, -1, ""
    labels: set[int] = set()
    with Path(path).open("rb") as stream, open_samples(path, stream) as (_, contents):
        for entry in contents.entries:
            label = read_label(path, entry.key, entry.label, classes)
            smallest = min(smallest, label)
            labels.add(label)
            if label > largest:
                largest, key = label, entry.key
            digest.update(f"{entry.key}/{entry.size}/{label}\n".encode())
    return _Scan(
        len(contents.entries),
        contents.skipped,
        contents.example,
        smallest,
        largest,
        key,
        digest.hexdigest(),
        frozenset(labels),
    )


def _same_images(one: str, other: str) -> bool:
    """Whether two shards with the same keys, sizes and labels hold the same images too."""
    with ExitStack() as held:
        pair = [held.enter_context(open_samples(p, held.enter_context(Path(p).open("rb")))) for p in (one, other)]
        (stream, contents), (second, others) = pair
        for entry, twin in zip(contents.entries, others.entries, strict=True):
            stream.seek(entry.offset)
            second.seek(twin.offset)
            if stream.read(entry.size) != second.read(twin.size):
                return False
    return True
