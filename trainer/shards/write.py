"""Write and describe webdataset shards: `{split}-%06d.tar` of `key.jpg` + `key.cls`, and meta.json."""

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from trainer.errors import UsageError
from trainer.locations import whole_file
from trainer.shards.find import Shards, read_shards
from trainer.shards.meta import read_meta


@dataclass(frozen=True)
class Sample:
    """One image before it is written: a unique key without dots, encoded JPEG bytes and its class index."""

    key: str
    jpeg: bytes
    label: int


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
        samples: images in the order to be written, read one by one; already shuffled, as neighbors share a shard.
        folder: folder or URL, created if missing; other splits already there are kept.
        classes: name of each class index.
        source: origin of the images, kept in meta.json.
        per_shard: number of samples in each shard but the last.

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
            raise UsageError(
                f"sample {sample.key} has label {sample.label}; give 0 to {classes - 1}, an index of the classes"
            )
        yield sample


def shard_name(split: str, index: int) -> str:
    """File name of a shard."""
    return f"{split}-{index:06d}.tar"


def write_shard(samples: Iterable[Sample], location: str) -> dict[str, Any]:
    """Write one shard to a path or URL; the same samples give the same bytes.

    Returns:
        Its entry in meta.json: number of samples, sha256 and size in bytes.
    """
    import webdataset as wds  # which imports PyTorch

    count = 0
    with whole_file(location) as stream:
        hashed = _Hashed(stream)
        with wds.TarWriter(hashed, mtime=0) as writer:
            for sample in samples:
                writer.write({"__key__": sample.key, "jpg": sample.jpeg, "cls": str(sample.label)})
                count += 1
    return {"samples": count, "sha256": hashed.digest.hexdigest(), "bytes": hashed.size}


class _Hashed:
    """Computes the checksum while writing, so no shard is held in memory or read again."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.digest, self.size = stream, sha256(), 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.size += len(data)
        return self.stream.write(data)


def check_classes(folder: str, classes: Sequence[str]) -> dict[str, Any]:
    """The meta.json of a folder or URL, `{"splits": {}}` where there is none.

    Raises:
        UsageError: if it cannot be read or has splits of other classes: their class indices would have other meanings.
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
    """Add a finished split to meta.json; other splits stay."""
    meta = check_classes(folder, classes)
    meta["classes"] = list(classes)
    meta["splits"][split] = entry
    with whole_file(f"{folder}/meta.json") as stream:
        stream.write(json.dumps(meta, indent=1).encode())
