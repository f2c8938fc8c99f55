"""Where images come from before they are in shards: class folders and TFRecords here, archives in imagenet.py.

A source is a list of locations, so each process reads only the images of its shards, and nothing is unpacked. Class
indices follow the sorted class names (for ImageNet: WordNet ids, the order that published checkpoints expect).
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

from trainer.command import how_to_run
from trainer.errors import FieldError, UsageError
from trainer.shards.layout import SPLITS
from trainer.shards.tar import IMAGE_SUFFIXES
from trainer.shards.tfrecords import read_example, record_places

SUFFIXES = (*IMAGE_SUFFIXES, ".bmp", ".gif", ".tif", ".tiff")
LONGEST_KEY = 80  # bytes; a tar member's name has 100


@dataclass(frozen=True, slots=True)
class Item:
    """One image before it is read.

    Args:
        key: unique in its source.
        path: path of the file or archive.
        offset: position of the image or TFRecord in it, in bytes.
        size: size of the image or TFRecord, in bytes.
        label: class index; None if it is in the TFRecord at the offset.
    """

    key: str
    path: str
    offset: int
    size: int
    label: int | None

    def __str__(self) -> str:
        return f"{self.path} ({self.key})" if self.offset or self.label is None else self.path


@dataclass(frozen=True)
class Source:
    """All images of one split in a fixed order.

    Args:
        name: kept in meta.json.
        classes: name of each class index.
        items: items of all images.
        ignored: number of files whose suffix is not that of an image, by suffix.
        empty: classes without an image.
    """

    name: str
    classes: tuple[str, ...]
    items: tuple[Item, ...]
    ignored: Counter[str] = field(default_factory=Counter)
    empty: tuple[str, ...] = ()


def class_folders(folder: Path, out: str = "SHARDS") -> Source:
    """A tree with one folder per class; deeper folders belong to their class.

    Args:
        out: folder of the shards, for the command in a message.

    Raises:
        UsageError: if there is no class folder or no image, or if the folders are splits.
    """
    if not folder.is_dir():
        raise FieldError("images", folder, "is no folder" if folder.exists() else "no such folder")
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if not classes:
        raise FieldError("images", folder, "no class folders in it; expected CLASS/IMAGE.jpg")
    splits = [name for name in classes if name.lower() in SPLITS]
    # CIFAR-100 has a class called train: splits are more than one such folder, or one that has class folders.
    if len(splits) > 1 or any(_holds_folders(folder / name) for name in splits):
        commands = [
            how_to_run("shards", "--images", str(folder / name), "--split", SPLITS[name.lower()], "--out", out)
            for name in splits
        ]
        raise FieldError(
            "images",
            folder,
            f"{', '.join(splits)} are splits, not classes; give one at a time: `" + "`, `".join(commands) + "`",
        )
    items, ignored = [], Counter[str]()
    for label, name in enumerate(classes):
        for path in sorted(path for path in (folder / name).rglob("*") if path.is_file()):
            if path.suffix.lower() in SUFFIXES:
                key = str(path.relative_to(folder).with_suffix(""))
                items.append(Item(key, str(path), 0, path.stat().st_size, label))
            else:
                ignored[path.suffix.lower() or "none"] += 1
    filled = {item.label for item in items}
    empty = tuple(name for label, name in enumerate(classes) if label not in filled)
    return replace(new_source(folder, classes, items, ignored), empty=empty)


def _holds_folders(folder: Path) -> bool:
    """Whether there are folders in it, and no images beside them."""
    inside = list(folder.iterdir())
    return any(path.is_dir() for path in inside) and not any(path.suffix.lower() in SUFFIXES for path in inside)


def tfrecords(paths: Sequence[Path], classes: Sequence[str]) -> Source:
    """TFRecord files with `image/encoded` and `image/class/label`, which counts from 1.

    Raises:
        UsageError: if a file is missing or no TFRecord file.
    """
    items = []
    for path in sorted(paths):
        if not path.is_file():
            raise FieldError("tfrecords", path, "no such file")
        for index, (offset, size) in enumerate(record_places(path)):
            items.append(Item(f"{path.name}_{index:06d}", str(path), offset, size, None))
    return new_source(paths[0].parent, classes, items)


def read_item(item: Item, classes: Sequence[str]) -> tuple[bytes, int]:
    """Encoded image and class index.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if a TFRecord is damaged.
        UsageError: if its label is not one of the classes.
    """
    if item.label is not None:
        with open(item.path, "rb") as stream:
            stream.seek(item.offset)
            return stream.read(item.size), item.label
    features = read_example(Path(item.path), item.offset, item.size)
    if not features.get("image/encoded") or not features.get("image/class/label"):
        raise ValueError("the record has no image/encoded or image/class/label")
    number = features["image/class/label"][0]
    synset = features.get("image/class/synset") or [b""]
    known = classes[number - 1] if 1 <= number <= len(classes) else None
    if known is None or synset[0].decode() not in ("", known):
        given = f"label {number} {synset[0].decode()}".strip()
        raise UsageError(f"{item}: {given} is not class {number} of {len(classes)} ({known}); check the synsets given")
    return features["image/encoded"][0], number - 1


def new_source(
    place: Path, classes: Sequence[str], items: Sequence[Item], ignored: Counter[str] | None = None
) -> Source:
    """A source whose keys are unique and fit for tar files and webdataset."""
    ignored = ignored or Counter()
    if not items:
        instead = f", not {in_words(ignored)}" if ignored else ""
        raise UsageError(f"{place}: no images in it; expected {', '.join(SUFFIXES)}{instead}")
    keys = [_key(item.key) for item in items]
    taken, again = Counter(keys), Counter[str]()
    for index, key in enumerate(keys):
        if taken[key] > 1:
            # a-1, a-2 …: a number that another file has in its name is passed over.
            while (candidate := f"{key}-{again[key] + 1}") in taken:
                again[key] += 1
            again[key] += 1
            taken[candidate] = 1
            keys[index] = candidate
    unique = (replace(item, key=key) for item, key in zip(items, keys, strict=True))
    return Source(str(place), tuple(classes), tuple(unique), ignored)


def in_words(ignored: Counter[str]) -> str:
    """The suffixes of ignored files, the most frequent first."""
    few = [f"{ending} ({number})" for ending, number in ignored.most_common(5)]
    return ", ".join(few) + (f" and {len(ignored) - 5} more" if len(ignored) > 5 else "")


def _key(name: str) -> str:
    """Without dots, which end a key, and slashes; long names are cut and told apart by their hash."""
    key = re.sub(r"[./\\\s]", "_", name)
    if len(key.encode(errors="surrogateescape")) > LONGEST_KEY or not key.isascii():
        stem = key.encode("ascii", "replace").decode().replace("?", "_")[: LONGEST_KEY - 17]
        key = f"{stem}_{sha256(name.encode(errors='surrogateescape')).hexdigest()[:16]}"
    return key
