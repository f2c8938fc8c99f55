"""Files by path or URL: local folders, file://, s3:// and gs:// to read and write, http(s):// to read.

Credentials and endpoints of object stores come from their usual environment (AWS_PROFILE, AWS_ENDPOINT_URL,
GOOGLE_APPLICATION_CREDENTIALS, …).
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from trainer.errors import UsageError
from trainer.retryable import UnreachableError

# pyarrow and urllib.request are imported where they are needed: the command lines look at paths before anything else.

SCHEMES = ("file", "http", "https", "s3", "gs")
TIMEOUT = 60  # seconds without a byte from a web server


def absolute(location: str | os.PathLike[str]) -> str:
    """A path without `~` and `.`, a URL as it is."""
    location = os.fspath(location)
    return location if is_url(location) else str(Path(location).expanduser().resolve())


def is_url(location: str) -> bool:
    """Whether this is a URL and not a path."""
    return "://" in location


def open_file(location: str) -> Any:
    """Open for reading bytes from start to end.

    Raises:
        OSError: FileNotFoundError if it is not there.
    """
    if urlsplit(location).scheme in ("http", "https"):
        from urllib.error import HTTPError
        from urllib.request import urlopen

        try:
            return urlopen(location, timeout=TIMEOUT)
        except HTTPError as error:
            raise (FileNotFoundError if error.code == 404 else OSError)(f"{location}: {error}") from None
    system, path = _file_system(location)
    return system.open_input_stream(path)


def read_json(location: str) -> Any:
    """The content of a JSON file, None where there is none."""
    try:
        with open_file(location) as stream:
            return json.load(stream)
    except FileNotFoundError:
        return None


@contextmanager
def whole_file(location: str) -> Iterator[BinaryIO]:
    """Write a file that appears under its name only when it is whole and, locally, safe on disk.

    Raises:
        UsageError: if it cannot be written.
    """
    if urlsplit(location).scheme in ("http", "https"):
        raise UsageError(f"{location}: a web server cannot be written to; give a folder, s3:// or gs:// URL")
    system, target = _file_system(location)
    try:
        with (_renamed if system.type_name == "local" else _uploaded)(system, target) as stream:
            yield stream
    except OSError as error:
        raise UsageError(f"cannot write {location}: {error.strerror or error}") from None


@contextmanager
def _renamed(_: Any, target: str) -> Iterator[BinaryIO]:
    folder, name = os.path.split(target)
    os.makedirs(folder, exist_ok=True)
    # Named by process, so two commands on one folder cannot write into each other's file.
    partial = Path(folder, f".{name.removeprefix('.')}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)  # else the rename may not outlast a power failure
    finally:
        os.close(handle)


@contextmanager
def _uploaded(system: Any, target: str) -> Iterator[BinaryIO]:
    with tempfile.TemporaryFile() as stream:
        yield stream
        size = stream.tell()
        stream.seek(0)
        with system.open_output_stream(target) as out:
            shutil.copyfileobj(stream, out, 8 << 20)
        # Closing the stream completes the object even after a failure on our side.
        if system.get_file_info(target).size != size:
            system.delete_file(target)
            raise OSError("the upload is incomplete")


def write_json(location: str, content: Any) -> None:
    """Write a JSON file, by path or URL, that is whole under its name even if the machine stops while writing."""
    with whole_file(location) as stream:
        stream.write(json.dumps(content, indent=1).encode())


def write_files(folder: str, files: Mapping[str, str | bytes]) -> None:
    """Write files by their names in a folder, each whole or not at all."""
    for name, content in files.items():
        with whole_file(f"{folder}/{name}") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)


def file_size(location: str) -> int | None:
    """Bytes of a file in a folder or an object store, None where there is none."""
    system, path = _file_system(location)
    info = system.get_file_info(path)
    return info.size if info.is_file else None


def remove_file(location: str) -> None:
    """Remove a file; it may be gone already."""
    system, path = _file_system(location)
    if system.get_file_info(path).is_file:
        system.delete_file(path)


def list_folder(location: str) -> set[str] | None:
    """Names of the files in a folder; None where a web server cannot be asked.

    Raises:
        OSError: FileNotFoundError if there is no such folder.
    """
    if urlsplit(location).scheme in ("http", "https"):
        return None
    from pyarrow.fs import FileSelector

    system, path = _file_system(location)
    return {Path(info.path).name for info in system.get_file_info(FileSelector(path)) if info.is_file}


def folders_in(location: str) -> set[str]:
    """Names of the folders in a folder or an object store, empty where there is none."""
    from pyarrow.fs import FileSelector, FileType

    system, path = _file_system(location)
    try:
        found = system.get_file_info(FileSelector(path, allow_not_found=True))
    except NotADirectoryError:
        raise UsageError(f"{location}: is a file, not a folder") from None
    return {Path(info.path).name for info in found if info.type == FileType.Directory}


def _file_system(location: str) -> tuple[Any, str]:
    """The file system of pyarrow, and the path in it."""
    from pyarrow.fs import LocalFileSystem

    if not is_url(location):
        return LocalFileSystem(), str(Path(location).resolve())
    scheme, host, path = urlsplit(location)[:3]
    if scheme == "file":
        return LocalFileSystem(), path
    return _object_store(f"{scheme}://{host}"), f"{host}{path}"


@lru_cache
def _object_store(bucket: str) -> Any:
    """One client per bucket and process: making one asks the store for the bucket's region."""
    from pyarrow import ArrowInvalid
    from pyarrow.fs import FileSystem

    try:
        if not bucket.startswith(("s3://", "gs://")):
            raise ArrowInvalid("no such protocol")
        return FileSystem.from_uri(bucket)[0]
    except (ArrowInvalid, OSError) as error:
        kind = UnreachableError if isinstance(error, OSError) else UsageError
        raise kind(f"{bucket}: give a folder or a URL of {', '.join(SCHEMES)} ({error})") from None
