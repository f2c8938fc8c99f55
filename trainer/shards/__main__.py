r"""Write images into webdataset shards with a meta.json that counts them, or verify shards.

    heatmap-sweeps shards --images photos/train --split train --out shards
    heatmap-sweeps shards --imagenet-train ILSVRC2012_img_train.tar --split train --out s3://bucket/imagenet
    heatmap-sweeps shards --imagenet-val ILSVRC2012_img_val.tar --devkit ILSVRC2012_devkit_t12.tar.gz \
        --split val --out s3://bucket/imagenet
    heatmap-sweeps shards --tfrecords records/train-* --synsets synsets.txt --split train --out shards
    heatmap-sweeps shards --verify s3://bucket/imagenet

`python -m trainer.shards` is the same. An interrupted command continues when it is repeated. Class indices
follow the sorted class names.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from trainer.command import command, parse
from trainer.errors import FieldError, UsageError
from trainer.locations import absolute
from trainer.shards.find import few

if TYPE_CHECKING:
    from trainer.shards.make import Done
    from trainer.shards.sources import Source
    from trainer.shards.verify import Checked

LINE_EVERY = 10  # seconds, where there is no terminal for a bar


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What to make shards of, or which shards to verify.

    Args:
        images: folder with one folder of images per class.
        imagenet_train: ILSVRC2012_img_train.tar.
        imagenet_val: ILSVRC2012_img_val.tar.
        tfrecords: TFRecords with image/encoded and image/class/label.
        verify: shards to read again, folder or URL: checksums, counts, every image.
        devkit: ILSVRC2012_devkit_t12.tar.gz, for classes and labels.
        synsets: file of WordNet ids: of each val image in order, or of each TFRecord class.
        split: split to write; with --verify, read only this one.
        out: folder or URL (s3, gs) to write into; other splits there are kept.
        per_shard: number of images per shard; by default 1000.
        shard_megabytes: size of the images in a shard before they are re-encoded, in MB, instead of their number.
        seed: seed of the shuffle.
        shorter_side: side in pixels to which larger images are scaled down.
        quality: quality of re-encoded JPEGs, 1 to 95.
        skip_broken: leave out images that cannot be decoded.
        processes: number of processes; by default one per CPU.
    """

    images: Path | None = field(default=None, metadata={"metavar": "FOLDER"})
    imagenet_train: Path | None = field(default=None, metadata={"metavar": "TAR"})
    imagenet_val: Path | None = field(default=None, metadata={"metavar": "TAR"})
    tfrecords: list[Path] = field(default_factory=list, metadata={"metavar": "FILE"})
    verify: str | None = field(default=None, metadata={"metavar": "SHARDS"})
    devkit: Path | None = field(default=None, metadata={"metavar": "TAR_GZ"})
    synsets: Path | None = field(default=None, metadata={"metavar": "TXT"})
    split: Literal["train", "val", "test"] | None = None
    out: str | None = field(default=None, metadata={"metavar": "FOLDER"})
    per_shard: int | None = None
    shard_megabytes: float | None = field(default=None, metadata={"metavar": "MB"})
    seed: int = 0
    shorter_side: int | None = None
    quality: int = 95
    skip_broken: bool = False
    processes: int = os.cpu_count() or 1

    def __post_init__(self) -> None:
        sources = ("images", "imagenet_train", "imagenet_val", "tfrecords", "verify")
        self._only_one(sources)
        self._only_one(("devkit", "synsets"))
        self._only_one(("per_shard", "shard_megabytes"))
        if not self._given(sources):
            raise UsageError(f"give one of {', '.join(f'`{name}`' for name in sources)}")
        for name in ("split", "out"):
            if not (self.verify or getattr(self, name)):
                raise UsageError(f"`{name}` is missing; `split` and `out` say which shards to write and where")
        if bool(self.imagenet_val or self.tfrecords) != bool(self.devkit or self.synsets):
            raise UsageError(
                "`imagenet_val` and `tfrecords`, and only they, need `devkit` or `synsets` for their classes"
            )
        if self.processes < 1:
            raise FieldError("processes", self.processes, "give a whole number of at least 1")

    def _only_one(self, names: Sequence[str]) -> None:
        if len(given := self._given(names)) > 1:
            raise UsageError(f"{' and '.join(f'`{name}`' for name in given)}: give one of them")

    def _given(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if getattr(self, name) not in (None, [])]


@command("stopped; the same command goes on from here")
def main(argv: Sequence[str] | None = None) -> int:
    """Make or verify shards; the exit status."""
    asked = parse(Asked, argv, prog="heatmap-sweeps shards", description=__doc__ or "")
    return _verify(asked) if asked.verify else _make(asked)


def _source(asked: Asked) -> "Source":
    from trainer.shards.imagenet import imagenet_train, imagenet_val, read_devkit, read_synsets
    from trainer.shards.sources import class_folders, tfrecords

    if asked.images:
        return class_folders(asked.images, str(asked.out))
    if asked.imagenet_train:
        return imagenet_train(asked.imagenet_train)
    classes = None
    if asked.devkit:
        synsets, classes = read_devkit(asked.devkit)
    elif asked.synsets:
        synsets = read_synsets(asked.synsets)
    classes = classes or sorted(set(synsets))
    if asked.imagenet_val:
        return imagenet_val(asked.imagenet_val, synsets, classes)
    return tfrecords(asked.tfrecords, classes)


def _make(asked: Asked) -> int:
    from trainer.shards.make import NAMED, Settings, make_shards
    from trainer.shards.sources import SUFFIXES, in_words

    settings = Settings(
        per_shard=1000 if asked.per_shard is None and asked.shard_megabytes is None else asked.per_shard,
        shard_megabytes=asked.shard_megabytes,
        seed=asked.seed,
        shorter_side=asked.shorter_side,
        quality=asked.quality,
    )
    source, split = _source(asked), str(asked.split)
    if source.ignored:
        print(
            f"{source.ignored.total()} files were left alone, for their endings are none of {', '.join(SUFFIXES)}: "
            f"{in_words(source.ignored)}",
            file=sys.stderr,
        )
    if source.empty:
        print(f"warning: classes without an image: {few(source.empty)}", file=sys.stderr)
    broken: list[str] = []
    kept = 0
    with _progress(split, len(source.items)) as advance:

        def progress(done: "Done") -> None:
            nonlocal kept
            kept += done.kept
            broken.extend(done.broken)
            advance(done.record["samples"] + len(done.broken))

        shards = make_shards(
            source,
            absolute(str(asked.out)).rstrip("/"),
            split,
            settings,
            workers=asked.processes,
            skip_broken=asked.skip_broken,
            progress=progress,
        )
    for line in broken[:NAMED]:
        print(f"left out: {line}", file=sys.stderr)
    skipped = len(source.items) - shards.total
    print(
        f"{shards.total} images of {len(shards.classes)} classes in {len(shards.paths)} shards under {asked.out}"
        + (f", {skipped} broken ones left out" if skipped else "")
        + (f", {kept} shards kept from before" if kept else "")
    )
    return 0


def _verify(asked: Asked) -> int:
    from trainer.shards.verify import verify

    folder = absolute(str(asked.verify)).rstrip("/")
    with _progress("verify", None) as advance:

        def progress(checked: "Checked") -> None:
            advance(checked.samples)

        try:
            samples, problems = verify(folder, asked.split, workers=asked.processes, progress=progress)
        except FieldError as error:
            field = "verify" if error.field == "data" else error.field  # what other commands call --data
            raise FieldError(field, error.value, error.remedy) from None
    for problem in problems:
        print(problem)
    print(f"{samples} images read, {len(problems)} problems" if problems else f"{samples} images read, all is well")
    return 1 if problems else 0


@contextmanager
def _progress(name: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar with the time left in a terminal, a line every few seconds elsewhere."""
    console = Console(stderr=True)
    if console.is_terminal:
        columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("images")]
        with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bar:
            task = bar.add_task(name, total=total)
            yield lambda images: bar.advance(task, images)
        return
    start = last = time.monotonic()
    seen = 0

    def line(images: int) -> None:
        nonlocal seen, last
        seen += images
        now = time.monotonic()
        if now - last < LINE_EVERY:
            return
        last = now
        rate = seen / (now - start)
        left = f" of {total}, {(total - seen) / max(rate, 1e-9) / 60:.0f} min left" if total else ""
        print(f"{name}: {seen} images{left}, {rate:.0f} images/s", file=sys.stderr, flush=True)

    yield line


if __name__ == "__main__":
    sys.exit(main())
