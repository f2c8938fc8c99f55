"""Read every shard again and name what is broken."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import file_digest
from typing import Any

from trainer.errors import FieldError, UsageError
from trainer.locations import is_url, list_folder, open_file
from trainer.preprocess import DecodeError, decode
from trainer.shards.find import MissingSplit, read_shards
from trainer.shards.labels import class_index
from trainer.shards.layout import find_place
from trainer.shards.meta import read_classes, read_meta
from trainer.shards.processes import in_order
from trainer.shards.tar import open_samples


@dataclass(frozen=True)
class Checked:
    """One shard, the images in it and what is wrong with it."""

    name: str
    samples: int
    problems: tuple[str, ...]


def verify(
    folder: str, split: str | None = None, *, workers: int = 1, progress: Callable[[Checked], None] = lambda done: None
) -> tuple[int, list[str]]:
    """Compare shards with meta.json, where there is one, and decode every image.

    Args:
        folder: path or URL.
        split: train, val or test; None checks all there are.
        progress: callback for each shard, in order.

    Returns:
        The number of images read and a line for everything that is wrong.

    Raises:
        UsageError: if there are no such shards, or they cannot be found.
    """
    root = find_place(folder).root
    try:
        meta = read_meta(root)
        splits = meta["splits"]
        classes = meta.get("classes") or read_classes(root)
        listed = list_folder(root) if splits else None
    except (FileNotFoundError, NotADirectoryError):
        raise FieldError("verify", folder, "no such folder") from None
    except OSError as error:
        raise UsageError(f"{folder}: cannot be read ({error})") from None
    chosen = [split] if split else list(splits)
    expected = [(name, record) for one in chosen if one in splits for name, record in splits[one]["shards"].items()]
    problems = [
        f"{name}: not in meta.json"
        for name in sorted((listed or set()) - {name for name, _ in expected})
        if name.endswith(".tar") and name.rpartition("-")[0] in chosen
    ]
    if not expected:
        expected = _undescribed(folder, root, chosen)
    samples = 0
    for checked in in_order(partial(_check, root, classes), expected, min(workers, len(expected))):
        samples += checked.samples
        problems += [f"{checked.name}: {problem}" for problem in checked.problems]
        progress(checked)
    return samples, problems


def _undescribed(folder: str, root: str, splits: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """Shards without a meta.json, in the form of entries of one."""
    found: list[tuple[str, dict[str, Any]]] = []
    for split in splits or ("train", "val", "test"):
        try:
            shards = read_shards(folder, split)
        except MissingSplit:
            if splits:
                raise
            continue
        found += [(path.removeprefix(f"{root}/"), {}) for path in shards.paths]
    if not found:
        raise UsageError(f"{folder}: no train, val or test shards are there")
    return found


def _check(folder: str, classes: Sequence[str], expected: tuple[str, dict[str, Any]]) -> Checked:
    """Whether training can read all of a shard, and it is what meta.json says."""
    name, record = expected
    problems, count = [], 0
    try:
        with _opened(f"{folder}/{name}") as stream:
            if record.get("sha256") not in (None, file_digest(stream, "sha256").hexdigest()):
                problems.append("sha256 differs from meta.json")
            stream.seek(0)
            with open_samples(name, stream) as (plain, contents):
                count = len(contents.entries)
                for entry in contents.entries:
                    plain.seek(entry.offset)
                    try:
                        decode(plain.read(entry.size))
                        class_index(name, entry.key, entry.label, classes)
                    except DecodeError as error:
                        problems.append(f"{entry.key}: {error}")
                    except UsageError as error:
                        problems.append(str(error).removeprefix(f"{name}: "))
                if contents.skipped:
                    problems.append(f"{contents.skipped} samples lack an image or a class, such as {contents.example}")
    except FileNotFoundError:
        return Checked(name, 0, ("missing",))
    except (UsageError, OSError) as error:
        problems.append(str(error).removeprefix(f"{name}: "))
    if record.get("samples", count) != count:
        problems.append(f"{count} images, meta.json says {record['samples']}")
    return Checked(name, count, tuple(problems))


@contextmanager
def _opened(location: str) -> Iterator[Any]:
    """A shard as it is there now, not a cached copy."""
    with tempfile.TemporaryFile() if is_url(location) else open(location, "rb") as stream:
        if is_url(location):
            with open_file(location) as source:
                shutil.copyfileobj(source, stream)
            stream.seek(0)
        yield stream
