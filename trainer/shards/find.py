"""Find the shards of a split, and what is known of them."""

import dataclasses
import filecmp
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from trainer.errors import FieldError
from trainer.locations import is_url
from trainer.shards.layout import find_place, hidden_by_ours, list_shards, of_split, plan_name
from trainer.shards.meta import read_classes, read_meta
from trainer.shards.scan import Counted, count_samples


class MissingSplit(FieldError):
    """The data have no such split."""


@dataclass(frozen=True)
class Shards:
    """The shards of one split.

    Args:
        split: train, val or test.
        paths: paths or URLs, in order.
        counts: samples in each.
        checksums: sha256 of each, None where it is unknown.
        classes: name of each class index.
        part: (first, step): the split is every step-th of the samples, from number `first` on.
        skipped: samples without an image or without a class, of shards that were counted here.
        empty: classes without a sample, of shards that were counted here.
        hidden: names of shards in another layout, which are ignored because there are some in ours.
    """

    split: str
    paths: tuple[str, ...]
    counts: tuple[int, ...]
    checksums: tuple[str | None, ...]
    classes: tuple[str, ...]
    part: tuple[int, int] = (0, 1)
    skipped: int = 0
    empty: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()

    @property
    def numbers(self) -> range:
        """Positions of the split's samples in its shards, counted through all of them."""
        first, step = self.part
        return range(first, sum(self.counts), step)

    @property
    def total(self) -> int:
        """Samples of the split."""
        return len(self.numbers)


def read_shards(location: str | Path | None, split: str) -> Shards:
    """Find the shards of a split.

    meta.json beside the shards says how many samples each has. Without it local shards are counted and their labels
    checked, once in a process as long as they do not change; remote ones are refused, since counting would download
    all of them. Labels of shards that meta.json counts are checked where they are read.

    Args:
        location: a folder, the URL of one (http(s)://, s3://, gs://), or the shards of all splits in braces, such as
            `https://host/imagenet/{train-{000000..001281},val-{000000..000049}}.tar`. The split is part of a shard's
            name or in that of its folder (`trainer.shards.layout`).

    Raises:
        UsageError: if the folder, a shard, the split or all its samples are missing, or a label or shard is invalid.
    """
    if location is None:
        raise FieldError("data", None, "give shards; the handwritten digits are written once a sweep begins")
    given = str(location).rstrip("/")
    place = find_place(given)
    try:
        listed = list_shards(place, split)
        meta = read_meta(place.root)
        classes = tuple(meta.get("classes") or read_classes(place.root))
    except FileNotFoundError:
        raise FieldError("data", given, f"no such folder; give one that holds {split}-000000.tar …") from None
    except OSError as error:
        raise FieldError("data", given, f"cannot be read ({error})") from None
    known = meta["splits"].get(split, {}).get("shards", {})
    if not known and plan_name(split) in (listed or ()):
        raise FieldError("data", given, f"its {split} shards are unfinished; run the command that makes them again")
    available = set(known) if listed is None else listed
    found = of_split(available if place.asked is None else place.asked, split)
    if not found:
        raise MissingSplit(
            "data", given, _missing_split(split, bool(meta["splits"]), listed is None and place.asked is None)
        )
    if not known and is_url(place.root):
        raise FieldError(
            "data",
            given,
            f"no meta.json there counts the {split} images, and counting would download all shards; "
            "copy them to a folder and give that, or put the meta.json of `python -m trainer.shards` beside them",
        )
    folders = sorted({f"{place.root}/{name}".rpartition("/")[0] for name in found})
    if len(folders) > 1:
        raise FieldError("data", given, f"names {len(folders)} folders with {split} shards ({_few(folders)}); give one")
    missing = sorted({*found, *(known if place.asked is None else ())} - available)
    unknown = sorted(set(found) - set(known)) if known else []
    if missing or unknown:
        differ = f"shards differ from meta.json (missing {_few(missing)}, unknown {_few(unknown)})"
        raise FieldError("data", given, differ if known else f"missing {_few(missing)}")
    paths = [f"{place.root}/{name}" for name in found]
    counted = Counted(tuple(known[name]["samples"] for name in found)) if known else count_samples(paths, classes)
    if not sum(counted.samples):
        raise FieldError(
            "data",
            given,
            f"the {split} shards hold no image with a class"
            + (f": {counted.example}; a sample is KEY.jpg and KEY.cls with the class index" if counted.example else ""),
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
        empty=tuple(classes[index] for index in counted.empty),
        hidden=tuple(hidden_by_ours(available if place.asked is None else place.asked, split)),
    )


def skipped_samples(data: str | None, *splits: Shards) -> str:
    """One line about what is left out of these splits, or is in two of them; empty if there is nothing to say.

    Samples that lack an image or a class are left out, and so are shards in other layouts if there are some in ours.
    """
    distinct = {shards.paths: shards for shards in reversed(splits)}  # val that is divided has the shards of test
    found = list(reversed(distinct.values()))
    said = []
    if counts := [f"{shards.skipped} of {shards.split}" for shards in found if shards.skipped]:
        said.append(f"samples without an image or without a class are left out ({', '.join(counts)})")
    for shards in found:
        if shards.hidden:
            said.append(
                f"{_few(shards.hidden)} left out, as {shards.split} is taken from the shards named {shards.split}-*"
            )
    if copies := _same_files(found):
        more = f", and {len(copies) - 1} more pairs" if len(copies) > 1 else ""
        said.append(f"{copies[0][0]} and {copies[0][1]} are the same file{more}, so the splits share images")
    return f"{data}: {'; '.join(said)}" if said else ""


def named_classes(location: str | Path | None, split: str) -> tuple[str, ...]:
    """Names of the classes of a split.

    Raises:
        UsageError: if the data have no class names.
    """
    classes = read_shards(location, split).classes
    if not classes:
        raise FieldError(
            "data",
            location,
            "neither meta.json nor classes.json there names the classes; put a classes.json beside "
            "the shards, a JSON list of the names in the order of the class indices",
        )
    return classes


def evaluation_splits(location: str | Path | None) -> tuple[Shards, Shards]:
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
            raise FieldError("data", location, "one val image is too few to choose and judge by") from None
        return dataclasses.replace(val, part=(0, 2)), dataclasses.replace(val, split="test", part=(1, 2))


def _same_files(splits: Sequence[Shards]) -> list[tuple[str, str]]:
    """Names of shards of two splits that are the same file: by checksum, or byte by byte where both are local."""
    first: dict[tuple[Any, ...], tuple[Shards, str]] = {}
    found = []
    for shards in splits:
        for path, checksum in zip(shards.paths, shards.checksums, strict=True):
            if checksum is None and is_url(path):
                continue
            key = (checksum,) if checksum else (Path(path).stat().st_size, _start(path))
            before, other = first.setdefault(key, (shards, path))
            if before is not shards and path != other and (checksum or filecmp.cmp(other, path, shallow=False)):
                found.append((_below(other), _below(path)))
    return found


def _start(path: str) -> bytes:
    with Path(path).open("rb") as stream:
        return sha256(stream.read(1 << 16)).digest()


def _below(path: str) -> str:
    return "/".join(path.split("/")[-2:])


def _missing_split(split: str, described: bool, web: bool) -> str:
    if web:
        reason = (
            f"its meta.json names no {split} shards" if described else f"no meta.json there counts the {split} images"
        )
        return f"{reason}; without it give the shards' names in braces, or a local copy of them"
    return (
        f"no {split}-*.tar in it, nor *-{split}-*.tar, {split}/*.tar (or .tar.gz, .tgz, .tar.xz …); "
        "`python -m trainer.shards --help` makes shards"
    )


def few(names: Sequence[str], most: int = 5) -> str:
    """Names for a message, the first of them if they are many."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _few(names: Sequence[str]) -> str:
    return str(list(names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
