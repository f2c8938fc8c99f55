"""Where the shards of a split are: our own layout and those in which ImageNet is published.

The split is part of the file's name (`train-000000.tar`, `imagenet1k-validation-00.tar`) or of its folder's
(`val/0.tar`), as a separate word; numbers may have any width, since shards are put in natural order.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from braceexpand import braceexpand

from trainer.errors import FieldError
from trainer.locations import folders_in, is_url, list_folder

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# Whether a compressed shard can be read shows in its content; one that cannot is refused, not passed over.
ENDINGS = (
    ".tar",
    *(f".tar.{kind}" for kind in ("gz", "bz2", "xz", "zst", "zstd", "lz4", "lzma", "lz", "br", "z")),
    *(".tgz", ".tbz", ".tbz2", ".txz", ".tzst", ".tlz"),
)


@dataclass(frozen=True)
class Place:
    """What `--data` names.

    Args:
        given: location as given by the user.
        root: folder or URL that holds meta.json and classes.json.
        asked: names in the braces, relative to the root; None for all there are.
    """

    given: str
    root: str
    asked: tuple[str, ...] | None = None


def plan_name(split: str) -> str:
    """File beside the shards of a split while they are being made."""
    return f".{split}.json"


def find_place(given: str) -> Place:
    """The folder of a location and the names in its braces; a folder name may have braces itself.

    Raises:
        UsageError: if the braces are of several hosts, or one of them is missing.
    """
    if "{" not in given or (not is_url(given) and Path(given).is_dir()):
        return Place(given, given)
    try:
        paths = [path.split("/") for path in braceexpand(given)]
    except ValueError as error:
        raise FieldError("data", given, f"no such folder, and its braces name no shards ({error})") from None
    if paths == [given.split("/")]:  # names nothing but itself
        return Place(given, given)
    shared = 0
    while all(len(path) - 1 > shared and path[shared] == paths[0][shared] for path in paths):
        shared += 1
    if is_url(given) and shared < 3:
        raise FieldError("data", given, "names several hosts or buckets; give the shards of one")
    root = "/".join(paths[0][:shared]) if shared else "."
    return Place(given, root, tuple("/".join(path[shared:]) for path in paths))


def split_of(name: str) -> str | None:
    """The split of a shard by its name relative to the root; the file's own name takes precedence over its folder's."""
    for part in reversed(name.split("/")):
        words = [SPLITS[word] for word in re.findall("[a-z]+", part.lower()) if word in SPLITS]
        if words:
            return words[-1]
    return None


def of_split(names: Iterable[str], split: str) -> list[str]:
    """Names that are shards of a split, in natural order; only those of our own layout if there are any."""
    shards = {name for name in names if _is_shard(name)}
    ours = {name for name in shards if name.startswith(f"{split}-")}
    return sorted(ours or {name for name in shards if split_of(name) == split}, key=_natural)


def hidden_by_ours(names: Iterable[str], split: str) -> list[str]:
    """Names that are shards of the split in another layout, if there are some of our own."""
    names = set(names)
    others = {name for name in names if _is_shard(name) and split_of(name) == split}
    return sorted(others - set(of_split(names, split)), key=_natural)


def list_shards(place: Place, split: str) -> set[str] | None:
    """Names of the files there, relative to the root, in it and in folders named after the split.

    Returns:
        None if a web server cannot list them.

    Raises:
        OSError: FileNotFoundError if there is no such folder.
    """
    if place.asked is not None:
        folders = {name.rpartition("/")[0] for name in place.asked}
    else:
        listed = list_folder(place.root)
        if listed is None:
            return None
        folders = {"", *(name for name in folders_in(place.root) if SPLITS.get(name.lower()) == split)}
    found: set[str] = set()
    for folder in folders:
        try:
            names = list_folder(f"{place.root}/{folder}" if folder else place.root)
        except FileNotFoundError:
            if not folder:
                raise
            continue
        if names is None:
            return None
        found |= {f"{folder}/{name}" if folder else name for name in names}
    return found


def _natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """A sort key: numbers by value; if only their width differs, by name."""
    return [(int(digits or 0), text) for text, digits in re.findall("([^0-9]+)|([0-9]+)", name)], name


def _is_shard(name: str) -> bool:
    base = name.rpartition("/")[2]
    return base.lower().endswith(ENDINGS) and not base.startswith(".")
