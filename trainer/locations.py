"""Read files by path or URL: local folders, file://, http(s)://, s3:// and gs://.

Credentials and endpoints of object stores come from their usual environment (AWS_PROFILE, AWS_ENDPOINT_URL,
GOOGLE_APPLICATION_CREDENTIALS, …).
"""

from functools import lru_cache
from io import BufferedIOBase
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

from pyarrow import ArrowInvalid, NativeFile
from pyarrow.fs import FileSelector, FileSystem, LocalFileSystem

from trainer.config import UsageError

SCHEMES = ("file", "http", "https", "s3", "gs")
TIMEOUT = 60  # seconds without a byte from a web server


def absolute(location: str) -> str:
    """A path without `~` and `.`, a URL as it is."""
    return location if is_url(location) else str(Path(location).expanduser().resolve())


def is_url(location: str) -> bool:
    """Whether this is a URL and not a path."""
    return "://" in location


def open_file(location: str) -> BufferedIOBase | NativeFile:
    """Open for reading from start to end.

    Raises:
        OSError: FileNotFoundError if it is not there.
    """
    if urlsplit(location).scheme in ("http", "https"):
        try:
            return urlopen(location, timeout=TIMEOUT)
        except HTTPError as error:
            raise (FileNotFoundError if error.code == 404 else OSError)(f"{location}: {error}") from None
    system, path = _file_system(location)
    return system.open_input_stream(path)


def list_folder(location: str) -> set[str] | None:
    """Names of the files in a folder; None where a web server cannot be asked.

    Raises:
        OSError: FileNotFoundError if there is no such folder.
    """
    if urlsplit(location).scheme in ("http", "https"):
        return None
    system, path = _file_system(location)
    return {Path(info.path).name for info in system.get_file_info(FileSelector(path)) if info.is_file}


def _file_system(location: str) -> tuple[FileSystem, str]:
    if not is_url(location):
        return LocalFileSystem(), str(Path(location).resolve())
    scheme, host, path = urlsplit(location)[:3]
    if scheme == "file":
        return LocalFileSystem(), path
    return _object_store(f"{scheme}://{host}"), f"{host}{path}"


@lru_cache
def _object_store(bucket: str) -> FileSystem:
    """One client per bucket and process: making one asks the store for the bucket's region."""
    try:
        if not bucket.startswith(("s3://", "gs://")):
            raise ArrowInvalid("no such protocol")
        return FileSystem.from_uri(bucket)[0]
    except (ArrowInvalid, OSError) as error:
        raise UsageError(f"{bucket}: give a folder or a URL of {', '.join(SCHEMES)} ({error})") from None
