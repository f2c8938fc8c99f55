"""Read every shard again and name what is broken."""

import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Any

from trainer.config import UsageError
from trainer.locations import list_folder, open_file
from trainer.shards.images import BrokenImage, decode
from trainer.shards.meta import read_meta
from trainer.shards.processes import in_order


@dataclass(frozen=True)
class Checked:
    """One shard, the images in it and what is wrong with it."""

    name: str
    samples: int
    problems: tuple[str, ...]


def verify(
    folder: str, split: str | None = None, *, workers: int = 1, progress: Callable[[Checked], None] = lambda done: None
) -> tuple[int, list[str]]:
    """Compare shards with meta.json and decode every image.

    Args:
        folder: path or URL.
        split: one of meta.json; None checks all.
        workers: processes.
        progress: called with each shard in order.

    Returns:
        The number of images read and a line for everything that is wrong.

    Raises:
        UsageError: if there is no meta.json, or not this split in it.
    """
    try:
        meta, listed = read_meta(folder), list_folder(folder)
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"--verify {folder}: no such folder") from None
    except OSError as error:
        raise UsageError(f"{folder}: cannot be read ({error})") from None
    splits = meta["splits"]
    if not splits or (split and split not in splits):
        raise UsageError(f"{folder}: no meta.json there tells of {split or 'any'} shards; are they finished?")
    chosen = [split] if split else list(splits)
    expected = [(name, record) for one in chosen for name, record in splits[one]["shards"].items()]
    problems = [
        f"{name}: not in meta.json"
        for name in sorted((listed or set()) - {name for name, _ in expected})
        if name.endswith(".tar") and name.rpartition("-")[0] in chosen
    ]
    samples = 0
    for checked in in_order(partial(_check, folder, len(meta["classes"])), expected, min(workers, len(expected))):
        samples += checked.samples
        problems += [f"{checked.name}: {problem}" for problem in checked.problems]
        progress(checked)
    return samples, problems


def _check(folder: str, classes: int, expected: tuple[str, dict[str, Any]]) -> Checked:
    name, record = expected
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


def _check_member(name: str, stream: Any, classes: int) -> list[str]:
    content = stream.read() if stream else b""
    try:
        if name.endswith(".cls"):
            return [] if 0 <= int(content) < classes else [f"{name}: class {int(content)} of {classes}"]
        decode(content, glance=True)
    except (BrokenImage, ValueError) as error:
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
