"""Make all shards of a split from a source: planned first, written in parallel, continued after an interruption.

Which image goes in which shard is a function of the source and the settings alone, so any number of workers, and any
number of interruptions, give the same bytes. While a split is being made, `.{split}.json` holds what it is made of and
`.{shard}.json` what is in a finished shard; meta.json is written last.
"""

import fnmatch
import json
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

from trainer.errors import FieldError, UsageError
from trainer.locations import file_size, is_url, list_folder, read_json, remove_file, whole_file
from trainer.shards.find import Shards, read_shards
from trainer.shards.images import BrokenImage, as_jpeg
from trainer.shards.layout import plan_name
from trainer.shards.processes import in_order
from trainer.shards.sources import Item, Source, read_item
from trainer.shards.write import Sample, check_classes, shard_name, write_meta, write_shard

NAMED = 5  # broken images in a message


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings that, with the source, determine the bytes of the shards.

    Args:
        per_shard: number of images in each shard but the last; ignored if `shard_megabytes` is given.
        shard_megabytes: size of the images in a shard before they are re-encoded, in MB of 10^6 bytes; at least one.
        seed: seed of the shuffle over the whole split.
        shorter_side: larger images are scaled down to it, in pixels; None leaves JPEGs as they are.
        quality: quality of re-encoded JPEGs, 1 to 95.
    """

    per_shard: int | None = 1000
    shard_megabytes: float | None = None
    seed: int = 0
    shorter_side: int | None = None
    quality: int = 95

    def __post_init__(self) -> None:
        for name in ("per_shard", "shard_megabytes", "shorter_side"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise FieldError(name, value, "give a number above 0")
        if not 1 <= self.quality <= 95:
            raise FieldError("quality", self.quality, "give a whole number from 1 to 95")


@dataclass(frozen=True)
class _Job:
    """One shard to be made."""

    folder: str
    name: str
    items: tuple[Item, ...]
    classes: tuple[str, ...]
    settings: Settings
    skip_broken: bool
    known: dict[str, Any] | None


@dataclass(frozen=True)
class Done:
    """One shard that was made, or found complete."""

    name: str
    record: dict[str, Any]
    broken: tuple[str, ...]
    kept: bool


def plan(source: Source, settings: Settings) -> Iterator[tuple[Item, ...]]:
    """The images of each shard."""
    items = list(source.items)
    random.Random(settings.seed).shuffle(items)
    group: list[Item] = []
    size = 0
    for item in items:
        if settings.shard_megabytes is None:
            full = len(group) == settings.per_shard
        else:
            full = bool(group) and size + item.size > settings.shard_megabytes * 1e6
        if full:
            yield tuple(group)
            group, size = [], 0
        group.append(item)
        size += item.size
    yield tuple(group)


def make_shards(
    source: Source,
    folder: str,
    split: str,
    settings: Settings,
    *,
    workers: int = 1,
    skip_broken: bool = False,
    progress: Callable[[Done], None] = lambda done: None,
) -> Shards:
    """Make the shards of a split, or what is missing of them.

    Args:
        folder: path or URL (s3://, gs://) of the shards; may hold other splits of the same classes.
        workers: processes; each writes whole shards.
        skip_broken: leave out images that cannot be decoded, instead of refusing.
        progress: callback for each shard, in order.

    Raises:
        UsageError: if an image is broken, the folder cannot be written, or it holds this split from another source.
    """
    identity = {**asdict(settings), "images": len(source.items), "listing": _listing(source)}
    known = _begin(folder, split, source, identity)
    planned = {shard_name(split, index): items for index, items in enumerate(plan(source, settings))}
    jobs = (
        _Job(folder, name, items, source.classes, settings, skip_broken, known.get(name))
        for name, items in planned.items()
    )
    written = {}
    for done in in_order(_make_shard, jobs, min(workers, len(planned))):
        written[done.name] = done.record
        progress(done)
    skipped = len(source.items) - sum(record["samples"] for record in written.values())
    if skipped == len(source.items):
        raise UsageError(f"{source.name}: all its {skipped} images are broken")
    entry = {"source": source.name, "settings": identity, "skipped": skipped, "shards": written}
    write_meta(folder, split, source.classes, entry)
    _remove_notes(folder, split)
    return read_shards(folder, split)


def _begin(folder: str, split: str, source: Source, identity: dict[str, Any]) -> dict[str, Any]:
    """The shards of a finished run with the same source and settings; an error if the folder holds others."""
    meta = check_classes(folder, source.classes)
    try:
        begun = read_json(f"{folder}/{plan_name(split)}")
        there = set()
        with suppress(FileNotFoundError):
            there = list_folder(folder) or set()
    except (OSError, ValueError) as error:
        raise FieldError("out", folder, f"cannot be read ({error})") from None
    finished = meta["splits"].get(split)
    before = finished.get("settings") if finished else begun
    shards = finished or fnmatch.filter(there, f"{split}-*.tar")
    if shards and before is None:
        raise FieldError("out", folder, f"holds {split} shards that this command did not make; give another folder")
    if shards and before != identity:
        pairs = {key: (before.get(key), value) for key, value in identity.items()}
        changed = [f"{key} {old} there, {new} now" for key, (old, new) in pairs.items() if old != new]
        raise FieldError(
            "out",
            folder,
            f"holds a {split} split made otherwise ({'; '.join(changed)}); give another folder, or "
            f"remove {split}-*.tar, {plan_name(split)} and the split's entry in meta.json",
        )
    if not is_url(folder):
        for pattern in (f".{split}-*", f".{split}.*", ".meta.json.*"):
            for partial in Path(folder).glob(f"{pattern}.partial"):
                partial.unlink(missing_ok=True)  # of a run that was killed
    if finished:
        return finished["shards"]
    with whole_file(f"{folder}/{plan_name(split)}") as stream:
        stream.write(json.dumps(identity).encode())
    return {}


def _make_shard(job: _Job) -> Done:
    location, note = f"{job.folder}/{job.name}", f"{job.folder}/.{job.name}.json"
    record = job.known or read_json(note)
    if record and _is_whole(location, record) and (job.known or job.skip_broken or record["samples"] == len(job.items)):
        return Done(job.name, record, (), kept=True)
    broken: list[str] = []
    record = write_shard(_samples(job, broken), location)
    if not job.known:
        with whole_file(note) as stream:
            stream.write(json.dumps(record).encode())
    return Done(job.name, record, tuple(broken), kept=False)


def _samples(job: _Job, broken: list[str]) -> Iterator[Sample]:
    for item in job.items:
        try:
            encoded, label = read_item(item, job.classes)
            jpeg = as_jpeg(encoded, job.settings.shorter_side, job.settings.quality)
        except UsageError:
            raise
        except (OSError, BrokenImage, ValueError) as error:
            broken.append(f"{item}: {error}")
            continue
        if job.skip_broken or not broken:
            yield Sample(item.key, jpeg, label)
    if broken and not job.skip_broken:
        more = f" and {len(broken) - NAMED} more" if len(broken) > NAMED else ""
        raise UsageError(
            f"broken images: {'; '.join(broken[:NAMED])}{more}; fix them and run the command again, or leave "
            "them out with `skip_broken`"
        )


def _is_whole(location: str, record: dict[str, Any]) -> bool:
    """Whether a shard is what its record says; in an object store, whose uploads are whole or absent, by size."""
    if file_size(location) != record["bytes"]:
        return False
    if is_url(location):
        return True
    with open(location, "rb") as stream:
        return file_digest(stream, "sha256").hexdigest() == record["sha256"]


def _listing(source: Source) -> str:
    """A hash of what is known of the images before they are read, without their locations."""
    digest = sha256()
    for item in source.items:
        digest.update(f"{item.key} {item.offset} {item.size} {item.label}\n".encode())
    return digest.hexdigest()[:16]


def _remove_notes(folder: str, split: str) -> None:
    for name in list_folder(folder) or ():
        if name.startswith(f".{split}-") and name.endswith(".tar.json"):
            remove_file(f"{folder}/{name}")
    remove_file(f"{folder}/{plan_name(split)}")
