"""Read meta.json and classes.json, which other tools write in other forms."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from trainer.config import UsageError
from trainer.locations import read_json

OURS = (
    "as `python -m trainer.shards` writes it: "
    '{"classes": [names], "splits": {"train": {"shards": {name: {"samples": n}}}}}'
)
IMAGENET_CLASSES = 1000  # whose published English names are a crane twice, bird and machine
CLASSES = 'a JSON list of the class names in the order of their indices, {"0": name, …} or {name: 0, …}'


def read_meta(folder: str) -> dict[str, Any]:
    """The content of meta.json, with `splits` and, where it names them, `classes`; no splits where there is none.

    Raises:
        OSError: if the folder cannot be reached.
        UsageError: if it is not a meta.json of `python -m trainer.shards`.
    """
    path = f"{folder}/meta.json"
    meta = _read(path, f"write it {OURS}, or move it away: local shards are counted without it")
    if meta is None:
        return {"splits": {}}
    if wrong := _wrong_meta(meta):
        raise UsageError(f"{path}: {wrong}; move it away (local shards are counted without it), or write it {OURS}")
    known = {"classes": class_names(path, meta["classes"])} if "classes" in meta else {}
    return {"splits": {}} | meta | known


def read_classes(folder: str) -> list[str]:
    """Class names of classes.json, empty where there is none.

    Raises:
        OSError: if the folder cannot be reached.
        UsageError: if it has no class names.
    """
    path = f"{folder}/classes.json"
    found = _read(path, f"give {CLASSES}")
    return [] if found is None else class_names(path, found)


def _read(path: str, remedy: str) -> Any:
    try:
        return read_json(path)
    except (ValueError, RecursionError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{path}: is not valid JSON in UTF-8 ({error}); {remedy}") from None


def _wrong_meta(meta: Any) -> str:
    """What differs from the form we write, in words."""
    if not isinstance(meta, dict):
        return f"is {_described(meta)}"
    if meta and not meta.keys() & {"classes", "splits"}:
        return f"is {_described(meta)} without classes or splits"
    splits = meta.get("splits", {})
    if not isinstance(splits, dict):
        return f"its splits are {_described(splits)}"
    for split, entry in splits.items():
        shards = entry.get("shards") if isinstance(entry, dict) else None
        if not isinstance(shards, dict):
            return f"its split {split} is {_described(entry)} without shards by name"
        for name, record in shards.items():
            count = record.get("samples") if isinstance(record, dict) else None
            if type(count) is not int or count < 0:
                return f"its {split} shard {name} has {count!r} samples"
            if not isinstance(record.get("sha256"), str | None):
                return f"its {split} shard {name} has the sha256 {record['sha256']!r}"
    return ""


def class_names(path: str, found: Any) -> list[str]:
    """Class names in the order of their indices, from any form that states it.

    Raises:
        UsageError: if this is not such a form.
    """
    names: Any = found
    if isinstance(found, dict):
        if all(type(value) is int for value in found.values()):  # torchvision's class_to_idx
            names, indices = list(found), list(found.values())
        else:  # Hugging Face's id2label, Keras' imagenet_class_index.json
            names, indices = list(found.values()), [_integer(str(key)) for key in found]
        if sorted(indices) != list(range(len(found))):
            raise _refused(path, f"is {_described(found)}, whose indices are not 0 to {len(found) - 1}")
        names = [name for _, name in sorted(zip(indices, names, strict=True), key=lambda pair: pair[0])]
    if isinstance(names, list) and all(isinstance(name, list) and name for name in names):
        names = [name[0] for name in names]  # [WordNet id, word]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise _refused(path, f"holds {_described(found)} where class names should be")
    twice = [name for name, number in Counter(names).items() if number > 1]
    if twice and len(names) != IMAGENET_CLASSES:
        raise _refused(path, f"names {', '.join(map(repr, twice[:3]))} more than once")
    return names


def _integer(key: str) -> int:
    return int(key) if key.isascii() and key.isdigit() else -1


def _refused(path: str, reason: str) -> UsageError:
    return UsageError(f"{path}: {reason}; give {CLASSES}")


def _described(value: Any) -> str:
    """The kind of a JSON value and the beginning of it."""
    kinds: Sequence[tuple[Any, str]] = (
        (dict, "an object"), (list, "a list"), (str, "a text"), (bool, "a truth value"), (int | float, "a number"),
    )  # fmt: skip
    kind = next((words for types, words in kinds if isinstance(value, types)), "null")
    text = repr(value)
    return f"{kind} ({text[:40]}{'…' if len(text) > 40 else ''})"
