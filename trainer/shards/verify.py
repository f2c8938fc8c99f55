"""Read every shard again and name what is broken."""

import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Any

from trainer.cache import ShardCache
from trainer.errors import FieldError, UsageError
from trainer.locations import list_folder, open_file
from trainer.preprocess import DecodeError
from trainer.preprocess import decode as decode_as_trained
from trainer.shards.find import MissingSplit, read_shards
from trainer.shards.images import BrokenImage, decode
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
        split: train, val or test; None checks all that are there.
        workers: processes.
        progress: callback for each shard, in order.

    Returns:
        The number of images read and a line for everything that is wrong.

    Raises:
        UsageError: if no such shards are there, or they cannot be found.
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
    """Shards without a meta.json, in the form of its entries."""
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
    name, record = expected
    return (
        _check_ours(folder, classes, name, record)
        if record.get("sha256")
        else _check_foreign(f"{folder}/{name}", classes, name, record.get("samples"))
    )


def _check_foreign(path: str, classes: Sequence[str], name: str, samples: int | None) -> Checked:
    """Whether training can read all of a shard that another tool wrote."""
    problems, count = [], 0
    try:
        with ShardCache().open(path) as stream, open_samples(name, stream) as (plain, contents):
            count = len(contents.entries)
            for entry in contents.entries:
                plain.seek(entry.offset)
                try:
                    decode_as_trained(plain.read(entry.size))
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
    if samples is not None and count != samples:
        problems.append(f"{count} images, meta.json says {samples}")
    return Checked(name, count, tuple(problems))


def _check_ours(folder: str, classes: Sequence[str], name: str, record: dict[str, Any]) -> Checked:
    members: dict[str, set[str]] = {}
    problems: list[str] = []
    try:
        with open_file(f"{folder}/{name}") as opened:
            stream = _Hashed(opened)
            try:
                with tarfile.open(fileobj=stream, mode="r|") as archive:  # type: ignore[call-overload]
                    for member in archive:
                        key, _, kind = member.name.partition(".")
                        if kind in members.setdefault(key, set()):
                            problems.append(f"{member.name} is there twice")
                        members[key].add(kind)
                        problems += _check_member(member.name, archive.extractfile(member), classes)
                        archive.members.clear()
            except tarfile.TarError as error:
                problems.append(f"no whole tar file ({error})")
            while stream.read(1 << 20):
                pass  # to the end, for the checksum
    except OSError as error:
        reason = "missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        return Checked(name, 0, (reason,))
    problems += [f"{key} is not one image and one class" for key, kinds in members.items() if kinds != {"jpg", "cls"}]
    if len(members) != record["samples"]:
        problems.append(f"{len(members)} images, meta.json says {record['samples']}")
    if stream.digest.hexdigest() != record["sha256"]:
        problems.append("sha256 differs from meta.json")
    return Checked(name, len(members), tuple(problems))


def _check_member(name: str, stream: Any, classes: Sequence[str]) -> list[str]:
    content = stream.read() if stream else b""
    try:
        if name.endswith(".cls"):
            class_index("", name.removesuffix(".cls"), content, classes)
            return []
        decode(content, glance=True)
    except UsageError as error:
        return [str(error).removeprefix(": ")]
    except BrokenImage as error:
        return [f"{name}: {error}"]
    return []


class _Hashed:
    """Takes the checksum of what is read."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.digest = stream, sha256()

    def read(self, size: int) -> bytes:
        data = self.stream.read(size)
        self.digest.update(data)
        return data
