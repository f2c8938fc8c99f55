"""Write and describe webdataset shards: `{split}-%06d.tar` of `key.jpg` + `key.cls`, and meta.json.

python -m trainer.shards --images CLASS_FOLDERS --split train --out SHARDS    # --help shows the other sources
"""

import dataclasses
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any, BinaryIO

import webdataset as wds
from PIL import Image

from trainer.config import UsageError
from trainer.locations import is_url, whole_file
from trainer.shards.layout import ENDINGS, find_place, list_shards, of_split
from trainer.shards.meta import read_classes, read_meta
from trainer.shards.scan import Counted, count_samples


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
        skipped: samples without an image or without a class, of shards that were counted here.
    """

    split: str
    paths: tuple[str, ...]
    counts: tuple[int, ...]
    checksums: tuple[str | None, ...]
    classes: tuple[str, ...]
    part: tuple[int, int] = (0, 1)
    skipped: int = 0

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
    remaining = _checked(samples, len(classes))
    while (first := next(remaining, None)) is not None:
        name = shard_name(split, len(written))
        written[name] = write_shard(chain([first], islice(remaining, per_shard - 1)), f"{folder}/{name}")
    if not written:
        raise UsageError(f"no image to write for split {split!r} from {source}")
    write_meta(str(folder), split, classes, {"source": source, "shards": written})
    return read_shards(folder, split)


def _checked(samples: Iterable[Sample], classes: int) -> Iterator[Sample]:
    for sample in samples:
        if not 0 <= sample.label < classes:
            raise UsageError(f"sample {sample.key} has label {sample.label}; give 0 to {classes - 1}, an index of the classes")
        yield sample


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
        meta = read_meta(folder)
    except OSError as error:
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

    meta.json beside the shards says how many samples each has. Without it local shards are counted and their labels
    checked, once in a process as long as they do not change; remote ones are refused, since counting would download
    all of them. Labels of shards that meta.json counts are checked where they are read.

    Args:
        location: a folder, the URL of one (http(s)://, s3://, gs://), or the shards of all splits in braces, such as
            `https://host/imagenet/{train-{000000..001281},val-{000000..000049}}.tar`. The split stands in a shard's
            name or in that of its folder (`trainer.shards.layout`).
        split: train, val or test.

    Raises:
        UsageError: if the folder, a shard, the split or all its samples are missing, or a label or shard is no good.
    """
    given = str(location).rstrip("/")
    place = find_place(given)
    try:
        listed = list_shards(place, split)
        meta = read_meta(place.root)
        classes = tuple(meta.get("classes") or read_classes(place.root))
    except FileNotFoundError:
        raise UsageError(f"--data {given}: no such folder; give one that holds {split}-000000.tar …") from None
    except OSError as error:
        raise UsageError(f"--data {given}: cannot be read ({error})") from None
    known = meta["splits"].get(split, {}).get("shards", {})
    if not known and plan_name(split) in (listed or ()):
        raise UsageError(f"--data {given}: its {split} shards are unfinished; run the command that makes them again")
    available = set(known) if listed is None else listed
    found = of_split(available if place.asked is None else place.asked, split)
    if not found:
        raise MissingSplit(_missing_split(given, split, bool(meta["splits"]), listed is None and place.asked is None))
    if not known and is_url(place.root):
        raise UsageError(
            f"--data {given}: no meta.json there counts the {split} images, and counting would download all shards; copy "
            "them to a folder and give that, or put the meta.json that `python -m trainer.shards` writes beside them"
        )
    folders = sorted({name.rpartition("/")[0] for name in found})
    if len(folders) > 1:
        raise UsageError(f"--data {given}: names {len(folders)} folders with {split} shards ({_few(folders)}); give one")
    missing = sorted({*found, *(known if place.asked is None else ())} - available)
    unknown = sorted(set(found) - set(known)) if known else []
    if missing or unknown:
        differ = f"shards differ from meta.json (missing {_few(missing)}, unknown {_few(unknown)})"
        raise UsageError(f"--data {given}: {differ if known else f'missing {_few(missing)}'}")
    paths = [f"{place.root}/{name}" for name in found]
    if known:
        counted = Counted(tuple(known[name]["samples"] for name in found))
    else:
        counted = count_samples(paths, classes)
    if not sum(counted.samples):
        raise UsageError(
            f"--data {given}: the {split} shards hold no image with a class"
            + (f": {counted.example}; a sample is KEY.jpg and KEY.cls with the class index" if counted.example else "")
        )
    # Shards without a sample, which some writers leave, are none.
    kept = [number for number, samples in enumerate(counted.samples) if samples]
    return Shards(
        split,
        tuple(paths[number] for number in kept),
        tuple(counted.samples[number] for number in kept),
        tuple(known.get(found[number], {}).get("sha256") for number in kept),
        classes,
        skipped=counted.skipped,
    )


def skipped_samples(data: str, *splits: Shards) -> str:
    """One line about samples of these splits that have no image or no class and are left out; empty if there are none."""
    counts = {shards.paths: f"{shards.skipped} of {shards.split}" for shards in splits if shards.skipped}
    if not counts:
        return ""
    return f"{data}: samples without an image or without a class are left out ({', '.join(counts.values())})"


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


def _missing_split(given: str, split: str, described: bool, web: bool) -> str:
    if web:
        reason = f"its meta.json names no {split} shards" if described else f"no meta.json there counts the {split} images"
        return f"--data {given}: {reason}; without it give the shards' names in braces, or a local copy of them"
    return (
        f"--data {given}: no {split}-*.tar in it, nor *-{split}-*.tar or {split}/*.tar (also {', '.join(ENDINGS[1:])}); "
        "`python -m trainer.shards --help` makes shards"
    )


def _few(names: Sequence[str]) -> str:
    return str(list(names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
