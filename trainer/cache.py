"""Local copies of remote shards, one folder per node, shared by all trials that run there.

A shard is downloaded once, under a temporary name, checked against the checksum of meta.json and only then given its
own; other readers wait for that. The least recently used are removed when the folder grows over its size; a
reader that has one open keeps it until it is done.
"""

import fcntl
import os
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import IO

from trainer.errors import UsageError
from trainer.locations import is_url, open_file
from trainer.retryable import UnreachableError

TRIES = 5
CHUNK = 1 << 20


@dataclass(frozen=True)
class ShardCache:
    """A folder of copies.

    Args:
        folder: folder for copies of remote shards on each node, created when first needed.
        size: space in GB that the copies may take; the shard being read is kept even if it is larger.
    """

    folder: str = str(Path(tempfile.gettempdir()) / "heatmap-sweeps-shards")
    size: float = 50.0

    @contextmanager
    def open(self, location: str, checksum: str | None = None) -> Iterator[IO[bytes]]:
        """A shard by path or URL, opened for reading.

        Raises:
            UsageError: if it cannot be downloaded in several tries, or does not match its checksum.
        """
        if not is_url(location):
            with Path(location).open("rb") as stream:
                yield stream
            return
        folder = Path(self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        # The whole address counts: train/000.tar and val/000.tar, or two buckets' shards, are different files.
        path = folder / f"{sha256(location.encode()).hexdigest()[:16]}-{location.rpartition('/')[2]}"
        with (folder / ".lock").open("w") as everyone:
            with path.with_name(f".{path.name}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # freed by the system even if this process is killed
                if not path.exists():
                    self._download(location, path, checksum)
                    fcntl.flock(everyone, fcntl.LOCK_EX)
                    self._evict(keep=path)
                    fcntl.flock(everyone, fcntl.LOCK_UN)
                os.utime(path)
                stream = path.open("rb")  # evicting it now only takes its name
            with stream:
                yield stream

    def _download(self, location: str, path: Path, checksum: str | None) -> None:
        from http.client import HTTPException

        partial = path.with_name(f".{path.name}.partial")
        for attempt in range(TRIES):
            if attempt:
                _back_off(attempt)
            try:
                digest = sha256()
                with open_file(location) as source, partial.open("wb") as target:
                    while chunk := source.read(CHUNK):
                        digest.update(chunk)
                        target.write(chunk)
                    target.flush()
                    os.fsync(target.fileno())
                if checksum is not None and digest.hexdigest() != checksum:
                    raise _WrongChecksum(f"{partial.stat().st_size} bytes came whose checksum differs from meta.json")
                partial.replace(path)
                return
            except FileNotFoundError as error:
                raise UsageError(f"shard {location} is not there: {error}") from None
            except (OSError, HTTPException) as error:
                reason = error
        partial.unlink(missing_ok=True)
        kind = UsageError if isinstance(reason, _WrongChecksum) else UnreachableError
        raise kind(f"shard {location} could not be read in {TRIES} tries: {reason}")

    def _evict(self, keep: Path) -> None:
        found = [(path.stat(), path) for path in keep.parent.iterdir() if not path.name.startswith(".")]
        total = sum(stat.st_size for stat, _ in found)
        for stat, path in sorted(found, key=lambda entry: entry[0].st_mtime):
            if total <= self.size * 1e9:
                return
            if path != keep:
                path.unlink(missing_ok=True)  # its lock file stays: someone may be waiting for it
                total -= stat.st_size


class _WrongChecksum(OSError):
    """What was downloaded is not what meta.json describes."""


def _back_off(attempt: int) -> None:
    """Wait longer each time, not all at the same moment."""
    time.sleep(2**attempt * random.uniform(0.25, 0.5))
