"""Write and describe webdataset shards: `{split}-%06d.tar` of `key.jpg` + `key.cls`, and meta.json.

python -m trainer.shards --images CLASS_FOLDERS --split train --out SHARDS    # --help shows the other sources
"""

import dataclasses
import fnmatch
import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any, BinaryIO

import webdataset as wds
from braceexpand import braceexpand
from PIL import Image

from trainer.config import UsageError
from trainer.locations import is_url, list_folder, read_json, whole_file

IMAGE_SUFFIXES: tuple[str, ...] = (".jpg", ".jpeg", ".png")


class MissingSplit(UsageError):
    """The data have no such split."""


@dataclass(frozen=True)
class Sample:
    """One image before it is written: a unique key without dots, encoded JPEG bytes and its class index."""

    key: str
    jpeg: bytes
    label: int


@dataclass(frozen=True)
class Shards:
    """The shards of one split.

    Args:
        split: train, val or test.
        paths: or URLs, in order.
        counts: samples in each.
        checksums: sha256 of each, None where nothing says it.
        classes: name of each class index.
        part: (first, step): the split is every step-th of the samples, from number `first` on.
    """

    split: str
    paths: tuple[str, ...]
    counts: tuple[int, ...]
    checksums: tuple[str | None, ...]
    classes: tuple[str, ...]
    part: tuple[int, int] = (0, 1)

    @property
    def numbers(self) -> range:
        """Where the split's samples stand in its shards, counted through all of them."""
        first, step = self.part
        return range(first, sum(self.counts), step)

    @property
    def total(self) -> int:
        """Samples of the split."""
        return len(self.numbers)


def encode_jpeg(image: Image.Image, quality: int = 95) -> bytes:
    """RGB JPEG bytes of an image."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def write_shards(
    samples: Iterable[Sample],
    folder: str | Path,
    split: str,
    classes: Sequence[str],
    source: str,
    per_shard: int = 1000,
) -> Shards:
    """Write one split; every file appears under its name only when it is whole.

    Args:
        samples: in the order to be written (shuffle before: neighbours land in one shard); read one by one.
        folder: or URL; created if missing; other splits already there are kept.
        split: train, val or test.
        classes: name of each class index.
        source: where the images come from, kept in meta.json.
        per_shard: samples in each shard but the last.

    Raises:
        UsageError: if there is no sample, the folder cannot be written or holds splits of other classes.
    """
    check_classes(str(folder), classes)
    written: dict[str, dict[str, Any]] = {}
    remaining = iter(samples)
    while (first := next(remaining, None)) is not None:
        name = shard_name(split, len(written))
        written[name] = write_shard(chain([first], islice(remaining, per_shard - 1)), f"{folder}/{name}")
    if not written:
        raise UsageError(f"no image to write for split {split!r} from {source}")
    write_meta(str(folder), split, classes, {"source": source, "shards": written})
    return read_shards(folder, split)


def plan_name(split: str) -> str:
    """File that lies beside the shards of a split for as long as they are being made."""
    return f".{split}.json"


def shard_name(split: str, index: int) -> str:
    """File name of a shard."""
    return f"{split}-{index:06d}.tar"


def write_shard(samples: Iterable[Sample], location: str) -> dict[str, Any]:
    """Write one shard to a path or URL; the same samples give the same bytes.

    Returns:
        Its entry in meta.json: number of samples, sha256 and size in bytes.
    """
    count = 0
    with whole_file(location) as stream:
        hashed = _Hashed(stream)
        with wds.TarWriter(hashed, mtime=0) as writer:
            for sample in samples:
                writer.write({"__key__": sample.key, "jpg": sample.jpeg, "cls": str(sample.label)})
                count += 1
    return {"samples": count, "sha256": hashed.digest.hexdigest(), "bytes": hashed.size}


class _Hashed:
    """Takes the checksum of what passes, so no shard is held in memory or read again."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.digest, self.size = stream, sha256(), 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.size += len(data)
        return self.stream.write(data)


def check_classes(folder: str, classes: Sequence[str]) -> dict[str, Any]:
    """The meta.json of a folder or URL, `{"splits": {}}` where there is none.

    Raises:
        UsageError: if it cannot be read or has splits of other classes: their class indices would mean other things.
    """
    try:
        meta = read_json(f"{folder}/meta.json") or {"splits": {}}
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot write shards to {folder}: its meta.json cannot be read ({error})") from None
    there = meta.get("classes", list(classes))
    if there != list(classes):
        difference = next(pair for pair in zip_longest(there, classes) if pair[0] != pair[1])
        raise UsageError(
            f"{folder} holds {', '.join(meta['splits'])} of {len(there)} classes, these images are of {len(classes)} "
            f"(first difference: {difference[0]} there, {difference[1]} here); give another folder"
        )
    return meta


def write_meta(folder: str, split: str, classes: Sequence[str], entry: dict[str, Any]) -> None:
    """Enter a finished split into meta.json; other splits stay."""
    meta = check_classes(folder, classes)
    meta["classes"] = list(classes)
    meta["splits"][split] = entry
    with whole_file(f"{folder}/meta.json") as stream:
        stream.write(json.dumps(meta, indent=1).encode())


def read_shards(location: str | Path, split: str) -> Shards:
    """Find the shards of a split.

    Args:
        location: a folder, the URL of one (http(s)://, s3://, gs://), or the shards of all splits in braces, such as
            `https://host/imagenet/{train-{000000..001281},val-{000000..000049}}.tar`. meta.json beside the shards
            says how many samples each has; without it local shards are counted, others refused.
        split: train, val or test.

    Raises:
        UsageError: if the folder, a shard, the split or all its samples are missing.
    """
    given = str(location).rstrip("/")
    folder, asked = _folder_and_names(given)
    try:
        listed = list_folder(folder)
        meta = read_json(f"{folder}/meta.json") or {}
        classes = meta.get("classes") or read_json(f"{folder}/classes.json") or ()
    except FileNotFoundError:
        raise UsageError(f"--data {given}: no such folder; give one that holds {split}-000000.tar …") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"--data {given}: cannot be read ({error})") from None
    known = meta.get("splits", {}).get(split, {}).get("shards", {})
    if not known and plan_name(split) in (listed or ()):
        raise UsageError(f"--data {given}: its {split} shards are unfinished; run the command that makes them again")
    if not known and is_url(folder):
        raise MissingSplit(f"--data {given}: no meta.json there counts the {split} images; put it beside the shards")
    available = set(known) if listed is None else listed
    found = sorted(fnmatch.filter(available if asked is None else asked, f"{split}-*.tar"))
    if not found:
        raise MissingSplit(f"--data {given}: no {split}-*.tar in it; `python -m trainer.shards --help` makes shards")
    missing = sorted({*found, *(known if asked is None else ())} - available)
    unknown = sorted(set(found) - set(known)) if known else []
    if missing or unknown:
        raise UsageError(f"--data {given}: shards differ from meta.json (missing {missing}, unknown {unknown})")
    counts = tuple(known[name]["samples"] if known else _count(Path(folder, name)) for name in found)
    if not sum(counts):
        raise UsageError(f"--data {given}: the {split} shards hold no image with a class")
    checksums = tuple(known.get(name, {}).get("sha256") for name in found)
    return Shards(split, tuple(f"{folder}/{name}" for name in found), counts, checksums, tuple(classes))


def evaluation_splits(location: str | Path) -> tuple[Shards, Shards]:
    """The val split, for choosing between models, and the test split, for judging the chosen one.

    Where there is no test split, val is divided: its even samples stay val, the odd ones become test.

    Raises:
        UsageError: as `read_shards`, or if a val split to be divided has only one sample.
    """
    val = read_shards(location, "val")
    try:
        return val, read_shards(location, "test")
    except MissingSplit:
        if val.total < 2:
            raise UsageError(f"--data {location}: one val image is too few to choose and judge by") from None
        return dataclasses.replace(val, part=(0, 2)), dataclasses.replace(val, split="test", part=(1, 2))


def _folder_and_names(location: str) -> tuple[str, set[str] | None]:
    """The folder of a location and the names its braces ask for, None where it has no braces."""
    paths = list(braceexpand(location)) if "{" in location else []
    folders = {path.rpartition("/")[0] for path in paths}
    if len(folders) > 1:
        raise UsageError(f"--data {location}: names {len(folders)} folders; give shards of one, with their meta.json")
    return (folders.pop(), {path.rpartition("/")[2] for path in paths}) if paths else (location, None)


def _count(path: Path) -> int:
    try:
        with tarfile.open(path) as archive:
            return sum(name.endswith(".cls") for name in archive.getnames())
    except tarfile.TarError as error:
        raise UsageError(f"{path}: not a readable tar file ({error})") from None
