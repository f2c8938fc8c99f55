"""The command line of `python -m trainer.shards`; PyTorch is imported once its flags are valid."""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from trainer.arguments import Parser
from trainer.command import run
from trainer.locations import absolute
from trainer.shards.find import few

if TYPE_CHECKING:
    from trainer.shards.make import Done
    from trainer.shards.sources import Source
    from trainer.shards.verify import Checked

LINE_EVERY = 10  # seconds, where there is no terminal for a bar
EXAMPLES = """
examples:
  python -m trainer.shards --images photos/train --split train --out shards
  python -m trainer.shards --imagenet-train ILSVRC2012_img_train.tar --split train --out s3://bucket/imagenet
  python -m trainer.shards --imagenet-val ILSVRC2012_img_val.tar --devkit ILSVRC2012_devkit_t12.tar.gz \\
      --split val --out s3://bucket/imagenet
  python -m trainer.shards --tfrecords records/train-* --synsets synsets.txt --split train --out shards
  python -m trainer.shards --verify s3://bucket/imagenet

A command that was interrupted goes on when it is given again. Class indices follow the sorted class names.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Make or verify shards; the exit status."""
    return run(lambda: _make_or_verify(argv), "stopped; the same command goes on from here")


def _make_or_verify(argv: Sequence[str] | None) -> int:
    given = _parse(argv)
    return _verify(given) if given.verify else _make(given)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        "python -m trainer.shards",
        description="Write images into webdataset shards with a meta.json that counts them.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--images", type=Path, metavar="FOLDER", help="one folder of images per class")
    source.add_argument("--imagenet-train", type=Path, metavar="TAR", help="ILSVRC2012_img_train.tar")
    source.add_argument("--imagenet-val", type=Path, metavar="TAR", help="ILSVRC2012_img_val.tar")
    source.add_argument("--tfrecords", type=Path, nargs="+", metavar="FILE", help="image/encoded, image/class/label")
    source.add_argument("--verify", metavar="SHARDS", help="read shards again: checksums, counts, every image")
    names = parser.add_mutually_exclusive_group()
    names.add_argument("--devkit", type=Path, metavar="TAR_GZ", help="ILSVRC2012_devkit_t12.tar.gz: classes and labels")
    names.add_argument(
        "--synsets", type=Path, metavar="TXT", help="WordNet ids: of each val image in order; of each TFRecord class"
    )
    parser.add_argument("--split", choices=("train", "val", "test"), help="needed but for --verify")
    parser.add_argument("--out", metavar="FOLDER", help="path, s3:// or gs:// URL; other splits there are kept")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--per-shard", type=int, default=1000, metavar="N", help="images per shard (default 1000)")
    size.add_argument("--shard-size", type=float, metavar="MB", help="size of the images in a shard, as they came")
    parser.add_argument("--seed", type=int, default=0, help="of the shuffle (default 0)")
    parser.add_argument("--shorter-side", type=int, metavar="N", help="scale larger images down to it, in pixels")
    parser.add_argument("--quality", type=int, default=95, metavar="Q", help="of JPEGs written anew (default 95)")
    parser.add_argument("--skip-broken", action="store_true", help="leave out images that cannot be decoded")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (default all)")
    given = parser.parse_args(argv)
    if not given.verify and not (given.split and given.out):
        parser.error("--split and --out say which shards to write and where")
    if bool(given.imagenet_val or given.tfrecords) != bool(given.devkit or given.synsets):
        parser.error("--imagenet-val and --tfrecords, and only they, need --devkit or --synsets for their classes")
    if given.workers < 1:
        parser.error(f"--workers {given.workers}: give a whole number of at least 1")
    return given


def _source(given: argparse.Namespace) -> "Source":
    from trainer.shards.imagenet import imagenet_train, imagenet_val, read_devkit, read_synsets
    from trainer.shards.sources import class_folders, tfrecords

    if given.images:
        return class_folders(given.images, given.out)
    if given.imagenet_train:
        return imagenet_train(given.imagenet_train)
    synsets, classes = read_devkit(given.devkit) if given.devkit else (read_synsets(given.synsets), None)
    classes = classes or sorted(set(synsets))
    if given.tfrecords:
        return tfrecords(given.tfrecords, classes)
    return imagenet_val(given.imagenet_val, synsets, classes)


def _make(given: argparse.Namespace) -> int:
    from trainer.shards.make import NAMED, Settings, make_shards
    from trainer.shards.sources import SUFFIXES, in_words

    settings = Settings(
        per_shard=None if given.shard_size else given.per_shard,
        shard_megabytes=given.shard_size,
        seed=given.seed,
        shorter_side=given.shorter_side,
        quality=given.quality,
    )
    source = _source(given)
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
    with _progress(given.split, len(source.items)) as advance:

        def progress(done: "Done") -> None:
            nonlocal kept
            kept += done.kept
            broken.extend(done.broken)
            advance(done.record["samples"] + len(done.broken))

        shards = make_shards(
            source,
            absolute(given.out).rstrip("/"),
            given.split,
            settings,
            workers=given.workers,
            skip_broken=given.skip_broken,
            progress=progress,
        )
    for line in broken[:NAMED]:
        print(f"left out: {line}", file=sys.stderr)
    skipped = len(source.items) - shards.total
    print(
        f"{shards.total} images of {len(shards.classes)} classes in {len(shards.paths)} shards under {given.out}"
        + (f", {skipped} broken ones left out" if skipped else "")
        + (f", {kept} shards kept from before" if kept else "")
    )
    return 0


def _verify(given: argparse.Namespace) -> int:
    from trainer.shards.verify import verify

    folder = absolute(given.verify).rstrip("/")
    with _progress("verify", None) as advance:

        def progress(checked: "Checked") -> None:
            advance(checked.samples)

        samples, problems = verify(folder, given.split, workers=given.workers, progress=progress)
    for problem in problems:
        print(problem)
    print(f"{samples} images read, {len(problems)} problems" if problems else f"{samples} images read, all is well")
    return 1 if problems else 0


@contextmanager
def _progress(name: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar with the time left in a terminal, now and then a line elsewhere."""
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
