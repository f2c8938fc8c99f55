"""ImageNet as it is downloaded: ILSVRC2012's tar archives and devkit, read in place."""

import io
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from trainer.errors import FieldError, UsageError
from trainer.shards.sources import SUFFIXES, Item, Source, new_source


def imagenet_train(archive: Path) -> Source:
    """`ILSVRC2012_img_train.tar`: one tar file per class, named by its WordNet id.

    Raises:
        UsageError: if it is no such archive, or cut short.
    """
    found: dict[str, list[tuple[str, int, int]]] = {}
    for name, offset, size in _members(archive):
        if name.endswith(".tar"):
            found[Path(name).stem] = list(_members(archive, offset, size))
    if not found:
        raise UsageError(f"{archive}: holds no class archives; expected n01440764.tar … as in ILSVRC2012_img_train.tar")
    classes = sorted(found)
    items = [
        Item(Path(name).stem, str(archive), offset, size, label)
        for label, wnid in enumerate(classes)
        for name, offset, size in sorted(found[wnid])
    ]
    return new_source(archive, classes, items)


def imagenet_val(archive: Path, synsets: Sequence[str], classes: Sequence[str]) -> Source:
    """`ILSVRC2012_img_val.tar`: all images in one tar file, in any order.

    Args:
        synsets: WordNet id of each image in the order of the file names.
        classes: sorted WordNet ids of all classes.

    Raises:
        UsageError: if it is no such archive or has another number of images.
    """
    members = sorted(member for member in _members(archive) if Path(member[0]).suffix.lower() in SUFFIXES)
    if len(members) != len(synsets):
        raise UsageError(f"{archive} has {len(members)} images, the labels are of {len(synsets)}")
    labels = {name: label for label, name in enumerate(classes)}
    items = [
        Item(Path(name).stem, str(archive), offset, size, labels[synset])
        for (name, offset, size), synset in zip(members, synsets, strict=True)
    ]
    return new_source(archive, classes, items)


def read_synsets(path: Path) -> list[str]:
    """WordNet ids of a text file, one a line; words behind them are left out."""
    try:
        synsets = [line.split()[0] for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise FieldError("synsets", path, f"cannot be read ({error})") from None
    wrong = [name for name in synsets if not re.fullmatch(r"n\d{8}", name)]
    if wrong or not synsets:
        raise FieldError("synsets", path, f"expected one WordNet id such as n01440764 a line, not {wrong[:3]}")
    return synsets


def read_devkit(path: Path) -> tuple[list[str], list[str]]:
    """WordNet ids of the validation images and, sorted, of all classes, from `ILSVRC2012_devkit_t12.tar.gz`.

    Its labels are ILSVRC ids, which have an order of their own; meta.mat says which WordNet id each is.
    """
    from scipy.io import loadmat

    try:
        with tarfile.open(path) as archive:
            content = {
                Path(member.name).name: stream.read()
                for member in archive
                if member.name.endswith(("data/meta.mat", "data/ILSVRC2012_validation_ground_truth.txt"))
                and (stream := archive.extractfile(member))
            }
        rows = loadmat(io.BytesIO(content["meta.mat"]), squeeze_me=True)["synsets"]
        wnids = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows if row["num_children"] == 0}
        ids = [int(number) for number in content["ILSVRC2012_validation_ground_truth.txt"].split()]
        return [wnids[number] for number in ids], sorted(wnids.values())
    except (OSError, tarfile.TarError, KeyError, ValueError) as error:
        raise FieldError("devkit", path, f"is not ILSVRC2012_devkit_t12.tar.gz ({error!r})") from None


def _members(archive: Path, start: int = 0, size: int | None = None) -> Iterator[tuple[str, int, int]]:
    """Name, offset in the archive and size of each file in a tar file, or in the one that starts at an offset in it."""
    try:
        with archive.open("rb") as stream:
            stream.seek(start)
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps all it has seen
                    if size is not None and member.offset >= start + size:
                        break  # no end mark: this is the next class archive
                    if size is not None and member.offset_data + member.size > start + size:
                        raise tarfile.ReadError("a class archive in it is cut short")
                    if member.isfile():
                        yield member.name, member.offset_data, member.size
    except (OSError, tarfile.TarError) as error:
        raise UsageError(f"{archive}: is not a complete, uncompressed tar file ({error})") from None
