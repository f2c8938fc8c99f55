"""The samples of a shard: members of a tar file grouped by key, in any order.

Counting and reading both use `open_samples`, so a split has the samples that are read from it. Keys are webdataset's: a
member's name up to the first dot of its base name. What cannot be read as intended is an error that
names it: duplicate members, links, images of other formats.
"""

import bz2
import gzip
import lzma
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Any

from trainer.config import UsageError

IMAGE_SUFFIXES: tuple[str, ...] = (".jpg", ".jpeg", ".png", ".webp")  # the first that a sample has is its image
IMAGES = tuple(suffix[1:] for suffix in IMAGE_SUFFIXES)
OTHER_IMAGES = ("avif", "bmp", "gif", "heic", "heif", "jp2", "jxl", "ppm", "tif", "tiff")
LONGEST_LABEL = 200  # bytes that are looked at; a class index or name is shorter
LONGEST_END = 1 << 20  # bytes of zeros behind the last member; writers fill up to 10 kB
COMPRESSED: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
NOT_READ = {
    b"\x28\xb5\x2f\xfd": "by Zstandard; unpack it with `zstd -d`",
    b"\x04\x22\x4d\x18": "by LZ4; unpack it with `lz4 -d`",
    b"LZIP": "by lzip; unpack it with `lzip -d`",
    b"\x1f\x9d": "by compress; unpack it with `gzip -d`",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """Position of a sample in its shard.

    Args:
        key: name of the sample in the shard.
        offset: position of the image, in bytes.
        size: size of the image, in bytes.
        label: content of its class member, no more than 200 bytes of it.
    """

    key: str
    offset: int
    size: int
    label: bytes


@dataclass(frozen=True)
class Contents:
    """What a shard holds.

    Args:
        entries: samples with an image and a class, in the order in which they begin.
        skipped: samples without an image or without a class.
        example: the first of those, in words; empty if there is none.
    """

    entries: tuple[Entry, ...]
    skipped: int
    example: str


@contextmanager
def open_samples(name: str, stream: IO[bytes]) -> Iterator[tuple[IO[bytes], Contents]]:
    """The shard's tar file, decompressed, and what it holds; no image is read.

    Args:
        name: name of the shard, for messages.
        stream: seekable, at its start.

    Raises:
        UsageError: if it is not a complete tar file, or holds what cannot be read correctly.
    """
    with _decompressed(name, stream) as plain:
        _check_start(name, plain)
        groups = _Groups(name)
        try:
            for member in _members(plain):
                groups.add(member, plain)
        except (OSError, tarfile.TarError) as error:
            raise UsageError(f"{name}: damaged after {groups.samples} samples ({error}); copy it again") from None
        yield plain, groups.contents()


@contextmanager
def _decompressed(name: str, stream: IO[bytes]) -> Iterator[IO[bytes]]:
    """The stream itself, or a temporary file with its decompressed content: samples are read by position."""
    head = stream.read(6)
    stream.seek(0)
    for magic, how in NOT_READ.items():
        if head.startswith(magic):
            raise UsageError(f"{name}: is compressed {how} (gzip, bzip2 and xz are read)")
    unpack = next((opener for magic, opener in COMPRESSED.items() if head.startswith(magic)), None)
    if unpack is None:
        yield stream
        return
    with tempfile.TemporaryFile() as plain:
        try:
            with unpack(stream) as source:
                shutil.copyfileobj(source, plain, 1 << 20)
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise UsageError(f"{name}: damaged, cannot be decompressed ({error}); copy it again") from None
        plain.seek(0)
        yield plain


def _check_start(name: str, stream: IO[bytes]) -> None:
    """Refuse web pages, Git LFS pointers and empty files with specific messages."""
    head = stream.read(tarfile.BLOCKSIZE)
    stream.seek(0)
    if not head:
        raise UsageError(f"{name}: is an empty file, not even an empty tar file; copy it again, or remove it")
    try:
        if head != bytes(tarfile.BLOCKSIZE):  # the end of an empty tar file
            tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        raise UsageError(f"{name}: not a readable tar file: it starts with {head[:24]!r}; copy it again") from None


def _members(stream: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """All members except folders, hidden files and those that systems add (._000.jpg, __MACOSX)."""
    with tarfile.open(fileobj=stream, mode="r:") as archive:
        for member in archive:
            archive.members = []  # type: ignore[attr-defined]  # else it remembers them all
            parts = member.name.split("/")
            left_behind = any(part.startswith(("PaxHeader", "__MACOSX")) for part in parts)
            # webdataset skips hidden files that are in no folder.
            if not (member.isdir() or left_behind or parts[-1].startswith(".")):
                yield member
        # tarfile takes a damaged header, and a file that ends early, for the end.
        stream.seek(archive.offset)
        if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"no member and no end of a tar file at byte {archive.offset}")
        rest = stream.read(LONGEST_END)
        if rest.strip(b"\0") or len(rest) == LONGEST_END:  # joined tar files, or room for a download that never came
            raise tarfile.ReadError(f"the tar file ends at byte {archive.offset}, but the file goes on")


@dataclass(slots=True)
class _Part:
    """Members of one file name but for its last suffix."""

    name: str
    number: int  # of the first of them
    images: dict[str, tuple[int, int]] = field(default_factory=dict)  # offset and size in bytes by suffix
    label: bytes | None = None

    @property
    def whole(self) -> bool:
        return bool(self.images) and self.label is not None


@dataclass(slots=True)
class _Group:
    """Members of one key; its parts differ between the key and the last suffix."""

    key: str
    parts: dict[str, _Part] = field(default_factory=dict)
    kinds: list[str] = field(default_factory=list)  # suffixes of all members


class _Groups:
    """Members by webdataset's keys.

    One image and one class under a key are a sample. If there are several, those whose names differ only in the last
    suffix belong together: `a.1.jpg`, `a.1.cls`, `a.2.jpg`, `a.2.cls` are two samples; `a.jpg`, `a.seg.png`, `a.cls`
    are one.
    """

    def __init__(self, shard: str) -> None:
        self.shard, self.samples = shard, 0
        self.members = 0
        self.groups: list[_Group] = []
        self.current: dict[str, _Group] = {}  # the newest of each key
        self.last = ""

    def add(self, member: tarfile.TarInfo, stream: IO[bytes]) -> None:
        """Take a member, at whose content the stream is positioned."""
        from webdataset.tariterators import base_plus_ext  # which imports PyTorch

        key, suffix = base_plus_ext(member.name.removeprefix("./"))
        if key is None:
            return
        self.members += 1
        suffix = suffix.lower()
        if suffix.endswith("cls.txt"):
            suffix = suffix.removesuffix(".txt")
        middle, _, kind = suffix.rpartition(".")
        group = self.current.get(key) or self._begin(key)
        if kind not in (*IMAGES, "cls"):
            group.kinds.append(suffix)
            return
        if not member.isreg() or member.issparse():
            what = "sparse" if member.issparse() else "a link"
            raise self._refused(member.name, f"is {what}, which is not read; pack it as a plain file")
        part = group.parts.get(middle)
        if part and (kind in part.images or (kind == "cls" and part.label is not None)):
            if key == self.last or not part.whole:
                raise self._refused(member.name, "is there twice; give each sample a key of its own")
            group, part = self._begin(key), None  # as in webdataset, a key that comes again is another sample
        group.kinds.append(suffix)
        if part is None:
            part = group.parts[middle] = _Part(f"{key}.{middle}" if middle else key, self.members)
        if kind == "cls":
            part.label = stream.read(min(member.size, LONGEST_LABEL))
        else:
            part.images[kind] = member.offset_data, member.size
        self.last = key
        self.samples += part.whole

    def _begin(self, key: str) -> _Group:
        self.current[key] = _Group(key)
        self.groups.append(self.current[key])
        return self.current[key]

    def _refused(self, name: str, reason: str) -> UsageError:
        return UsageError(f"{self.shard}: {_printable(name)} {reason}")

    def contents(self) -> Contents:
        """The samples, once all members were taken."""
        found: list[tuple[int, Entry]] = []
        skipped, example, other = 0, "", ""
        for group in self.groups:
            images = [part for part in group.parts.values() if part.images]
            labels = [part for part in group.parts.values() if part.label is not None]
            whole = [(part, part) for part in images if part.label is not None]
            if not whole and len(images) == len(labels) == 1:
                whole = [(images[0], labels[0])]
            found += [(min(image.number, label.number), self._entry(image, label)) for image, label in whole]
            if not whole:
                if labels and (unread := [kind for kind in group.kinds if kind.rpartition(".")[2] in OTHER_IMAGES]):
                    formats = ", ".join(IMAGES)
                    raise self._refused(f"{group.key}.{unread[0]}", f"is not of a format that is read ({formats})")
                words = f"{_printable(group.key)} has {', '.join(group.kinds)}"
                example, other = example or (words if images or labels else ""), other or words
            if "" not in group.parts or not group.parts[""].whole:  # else the others are further members of that sample
                skipped += max(len(images), len(labels)) - len(whole)
        found.sort(key=lambda pair: pair[0])
        return Contents(tuple(entry for _, entry in found), skipped, example or other)

    def _entry(self, image: _Part, label: _Part) -> Entry:
        offset, size = next(image.images[kind] for kind in IMAGES if kind in image.images)
        assert label.label is not None
        return Entry(_printable(image.name), offset, size, label.label)


def _printable(name: str) -> str:
    """A member's name, which may hold any bytes, as text for messages."""
    return name.encode(errors="surrogateescape").decode(errors="replace")
