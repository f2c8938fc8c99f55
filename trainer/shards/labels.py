"""Class indices from the class members of samples, with a one-line error for invalid ones."""

import re
from collections.abc import Sequence
from functools import lru_cache

from trainer.config import UsageError


def class_index(shard: str, key: str, content: bytes, classes: Sequence[str]) -> int:
    """The class index that a class member holds: an integer, or one of the class names.

    Args:
        classes: name of each class index; if empty, any index from 0 on is accepted.

    Raises:
        UsageError: if it is neither, or no index of these classes.
    """
    index = read_label(shard, key, content, classes)
    if classes and index >= len(classes):
        raise too_large(shard, key, index, len(classes))
    return index


def read_label(shard: str, key: str, content: bytes, classes: Sequence[str]) -> int:
    """As `class_index`, but an index may be too large.

    Raises:
        UsageError: if it is not an index.
    """
    text = content.decode("utf-8", "replace").strip()
    if re.fullmatch("[+-]?[0-9]{1,18}", text):
        if int(text) < 0:
            raise _wrong(shard, key, text, "class indices count from 0; leave out samples without a class")
        return int(text)
    index = _indices(tuple(classes)).get(text, -1)
    if index < 0:
        shown = repr(content[:24])[1:] if "\ufffd" in text or not text.isprintable() else repr(text[:40])
        names = f"nor one of the {len(classes)} class names" if classes else "and no classes.json lists it"
        remedy = "write the class index as text, or list the names in classes.json in the order of their indices"
        raise _wrong(shard, key, shown, f"not an integer {names}; {remedy}")
    return index


def too_large(shard: str, key: str, index: int, classes: int, smallest: int = 0, largest: int = -1) -> UsageError:
    """The error for an index that is not below the number of classes.

    Args:
        smallest: smallest label of the whole split, where that is known.
        largest: largest label of the whole split, where that is known.
    """
    reason = f"{classes} classes are named, 0 to {classes - 1}; correct it, or name all classes in order"
    if (smallest, largest) == (1, classes):
        reason = f"labels count from 1 to {classes}; subtract 1 from each, indices count from 0"
    return _wrong(shard, key, str(index), reason)


def _wrong(shard: str, key: str, value: str, reason: str) -> UsageError:
    return UsageError(f"{shard}: sample {key} has label {value}: {reason}")


@lru_cache(maxsize=8)
def _indices(classes: tuple[str, ...]) -> dict[str, int]:
    """Index by name; -1 for names of several classes."""
    found: dict[str, int] = {}
    for index, name in enumerate(classes):
        found[name] = -1 if name in found else index
    return found
