"""Write and describe webdataset shards: `{split}-%06d.tar` of `key.jpg` + `key.cls`, and meta.json.

    python -m trainer.shards --images CLASS_FOLDERS --split train --out SHARDS

CLASS_FOLDERS holds one folder of images per class; the sorted folder names are the class order.
"""

import argparse
import fnmatch
import io
import json
import os
import random
import sys
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import webdataset as wds
from braceexpand import braceexpand
from PIL import Image

from trainer.config import UsageError
from trainer.locations import is_url, list_folder, open_file

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Sample:
    """One image before it is written: a unique key without dots, encoded JPEG bytes and its class index."""

    key: str
    jpeg: bytes
    label: int


@dataclass(frozen=True)
class Shards:
    """The shards of one split: paths or URLs in order, the number of samples in each and its sha256."""

    split: str
    paths: tuple[str, ...]
    counts: tuple[int, ...]
    checksums: tuple[str | None, ...]
    classes: tuple[str, ...]

    @property
    def total(self) -> int:
        """Samples over all shards."""
        return sum(self.counts)


def encode_jpeg(image: Image.Image, quality: int = 95) -> bytes:
    """RGB JPEG bytes of an image."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def write_shards(
    samples: Iterable[Sample], folder: Path, split: str, classes: Sequence[str], source: str, per_shard: int = 1000
) -> Shards:
    """Write one split; every file appears under its name only when it is whole.

    Args:
        samples: in the order to be written (shuffle before: neighbours land in one shard).
        folder: created if missing; other splits already there are kept.
        split: train, val or test.
        classes: name of each class index.
        source: where the images come from, kept in meta.json.
        per_shard: samples in each shard but the last.

    Raises:
        UsageError: if there is no sample or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write shards to {folder}: {error.strerror}") from None
    written: dict[str, dict[str, Any]] = {}
    for index, group in enumerate(_grouped(samples, per_shard)):
        name = f"{split}-{index:06d}.tar"
        partial = folder / f".{name}.partial"
        with partial.open("wb") as stream:
            writer = wds.TarWriter(stream, mtime=0)
            for sample in group:
                writer.write({"__key__": sample.key, "jpg": sample.jpeg, "cls": str(sample.label)})
            writer.close()
            stream.flush()
            os.fsync(stream.fileno())
        checksum = sha256(partial.read_bytes()).hexdigest()
        partial.replace(folder / name)
        written[name] = {"samples": len(group), "sha256": checksum}
    if not written:
        raise UsageError(f"no image to write for split {split!r} from {source}")
    meta = _read_json(str(folder / "meta.json")) or {"splits": {}}
    meta["classes"] = list(classes)
    meta["splits"][split] = {"source": source, "shards": written}
    partial = folder / ".meta.json.partial"
    partial.write_text(json.dumps(meta, indent=1))
    partial.replace(folder / "meta.json")
    return read_shards(folder, split)


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
        meta = _read_json(f"{folder}/meta.json") or {}
        classes = meta.get("classes") or _read_json(f"{folder}/classes.json") or ()
    except FileNotFoundError:
        raise UsageError(f"--data {given}: no such folder; give one that holds {split}-000000.tar …") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"--data {given}: cannot be read ({error})") from None
    known = meta.get("splits", {}).get(split, {}).get("shards", {})
    if not known and is_url(folder):
        raise UsageError(f"--data {given}: no meta.json there counts the {split} images; put it beside the shards")
    available = set(known) if listed is None else listed
    found = sorted(fnmatch.filter(available if asked is None else asked, f"{split}-*.tar"))
    if not found:
        raise UsageError(f"--data {given}: no {split}-*.tar in it; `python -m trainer.shards --help` makes shards")
    missing = sorted({*found, *(known if asked is None else ())} - available)
    unknown = sorted(set(found) - set(known)) if known else []
    if missing or unknown:
        raise UsageError(f"--data {given}: shards differ from meta.json (missing {missing}, unknown {unknown})")
    counts = tuple(known[name]["samples"] if known else _count(Path(folder, name)) for name in found)
    if not sum(counts):
        raise UsageError(f"--data {given}: the {split} shards hold no image with a class")
    checksums = tuple(known.get(name, {}).get("sha256") for name in found)
    return Shards(split, tuple(f"{folder}/{name}" for name in found), counts, checksums, tuple(classes))


def _folder_and_names(location: str) -> tuple[str, set[str] | None]:
    """The folder of a location and the names its braces ask for, None where it has no braces."""
    paths = list(braceexpand(location)) if "{" in location else []
    folders = {path.rpartition("/")[0] for path in paths}
    if len(folders) > 1:
        raise UsageError(f"--data {location}: names {len(folders)} folders; give shards of one, with their meta.json")
    return (folders.pop(), {path.rpartition("/")[2] for path in paths}) if paths else (location, None)


def class_folders(folder: Path, seed: int) -> tuple[Iterator[Sample], list[str]]:
    """Samples of a tree with one folder per class, shuffled by seed, and the sorted class names."""
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if not classes:
        raise UsageError(f"--images {folder}: no class folders in it; expected CLASS/IMAGE.jpg")
    files = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((folder / name).iterdir())
        if path.suffix.lower() in IMAGE_SUFFIXES
    ]
    random.Random(seed).shuffle(files)

    def samples() -> Iterator[Sample]:
        for path, label in files:
            encoded = path.read_bytes()
            if path.suffix.lower() == ".png":
                encoded = encode_jpeg(Image.open(io.BytesIO(encoded)))
            yield Sample(f"{classes[label]}_{path.stem}".replace(".", "_"), encoded, label)

    return samples(), classes


def _grouped(samples: Iterable[Sample], size: int) -> Iterator[list[Sample]]:
    group: list[Sample] = []
    for sample in samples:
        group.append(sample)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _count(path: Path) -> int:
    try:
        with tarfile.open(path) as archive:
            return sum(name.endswith(".cls") for name in archive.getnames())
    except tarfile.TarError as error:
        raise UsageError(f"{path}: not a readable tar file ({error})") from None


def _read_json(location: str) -> Any:
    """The content of a JSON file, None where there is none."""
    try:
        with open_file(location) as stream:
            return json.load(stream)
    except FileNotFoundError:
        return None


def main() -> None:
    """Command line of this file."""
    parser = argparse.ArgumentParser(description="Write webdataset shards from a folder with one sub-folder per class.")
    parser.add_argument("--images", type=Path, required=True, help="folder of class folders")
    parser.add_argument("--out", type=Path, required=True, help="folder for the shards")
    parser.add_argument("--split", choices=("train", "val", "test"), required=True)
    parser.add_argument("--per-shard", type=int, default=1000, help="images per shard (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the shuffle (default 0)")
    given = parser.parse_args()
    try:
        samples, classes = class_folders(given.images, given.seed)
        shards = write_shards(samples, given.out, given.split, classes, str(given.images), given.per_shard)
    except UsageError as error:
        sys.exit(f"error: {error}")
    print(f"{shards.total} images of {len(classes)} classes in {len(shards.paths)} shards under {given.out}")


if __name__ == "__main__":
    main()
