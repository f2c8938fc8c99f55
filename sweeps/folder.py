"""The folder of a sweep: which sweeps there are, and which process drives one."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from trainer.errors import FieldError, UsageError
from trainer.locations import file_size, folders_in, list_folder, open_file, remove_file, whole_file

if TYPE_CHECKING:
    from sweeps.settings import Sweep

SETTINGS = "sweep.yaml"  # in the folder of each sweep
DRIVER = ".driver"  # locked by the process that drives the sweep


def read_yaml(location: str) -> dict[str, Any]:
    """The settings in a file of YAML.

    Raises:
        UsageError: if there is no such file, or it holds something else.
    """
    try:
        with open_file(location) as stream:
            content = yaml.load(stream.read(), _EachOnce)
    except FileNotFoundError:
        raise UsageError(f"{location}: there is no such file") from None
    except OSError as error:
        raise UsageError(f"{location}: cannot be read ({error.strerror or error})") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UsageError(f"{location}: is not valid YAML ({' '.join(str(error).split())[:200]})") from None
    if not isinstance(content, dict):
        raise UsageError(f"{location}: has no settings; give a file such as the sweep.yaml in a sweep's folder")
    return content


class _EachOnce(yaml.SafeLoader):
    """YAML whose keys differ, as YAML itself wants it; PyYAML takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        if twice := [key for key, _ in node.value if names.count(key.value) > 1]:
            raise yaml.MarkedYAMLError(problem=f"{twice[-1].value} is given twice", problem_mark=twice[-1].start_mark)
        return super().construct_mapping(node, deep)


def sweeps_in(storage: str) -> list[str]:
    """Names of the sweeps in a storage folder or URL."""
    return [name for name in sorted(folders_in(storage)) if file_size(f"{storage}/{name}/{SETTINGS}") is not None]


def no_sweep(name: str | None, storage: str) -> UsageError:
    """That a storage has no sweep, or none of that name."""
    known = ", ".join(sweeps_in(storage))
    return UsageError(f"no sweep{f' {name!r}' if name else ''} under {storage}{f'; it has {known}' if known else ''}")


def was_prepared(folder: str) -> bool:
    """Whether a sweep began to be prepared in a folder, which then has its lock or what it starts from."""
    try:
        return bool({DRIVER, "start.json", "start.pt"} & (list_folder(folder) or set()))
    except OSError:
        return False


def create_folder(sweep: Sweep) -> None:
    """Make the sweep's folder.

    Raises:
        UsageError: if the storage cannot be written.
    """
    probe = f"{sweep.folder}/.writable"
    try:
        with whole_file(probe) as stream:
            stream.write(b"")
        remove_file(probe)
        sweep.local_folder.mkdir(parents=True, exist_ok=True)
    except (UsageError, OSError) as error:
        raise FieldError("storage", sweep.storage, f"cannot be written ({error})") from None


def is_driven(folder: Path) -> bool | None:
    """Whether a process drives the sweep with this local folder now; None where this machine cannot tell."""
    try:
        with (folder / DRIVER).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    return False


@contextmanager
def driving(sweep: Sweep, new: bool = False) -> Iterator[None]:
    """Within the block, no other process of this machine drives the sweep.

    Raises:
        UsageError: if one does, or if the sweep should be new and its name is taken.
    """
    sweep.local_folder.mkdir(parents=True, exist_ok=True)
    with (sweep.local_folder / DRIVER).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # freed by the system even if this process is killed
        except BlockingIOError:
            raise FieldError("name", sweep.name, "another process drives this sweep; wait until it ends") from None
        if new and file_size(f"{sweep.folder}/{SETTINGS}") is not None:
            raise FieldError(
                "name",
                sweep.name,
                f"a sweep of that name is already under {sweep.storage}; `resume` continues it, or choose another name",
            )
        yield
