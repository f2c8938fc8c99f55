"""Write and read a trial's checkpoints, in a folder or an object store: `epoch_0002` with state.pt and its sha256.

A state appears under its name only when it is whole. One that was damaged afterwards is passed over for an older one.
"""

import io
import logging
from hashlib import sha256

import torch

from trainer.config import UsageError
from trainer.fit import State
from trainer.locations import folders_in, open_file, remove_file, whole_file
from trainer.retryable import UnreachableError
from trainer.weights_file import STATE_FILE

log = logging.getLogger(__name__)

EPOCH = "epoch_"  # how the names of checkpoints begin
CHECKSUM_FILE = f"{STATE_FILE}.sha256"


def save_state(state: State, folder: str) -> None:
    """Write the state into a checkpoint folder, a path or URL.

    Raises:
        UsageError: if it cannot be written; what was there before is then still there, or gone as a whole.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()  # copies nothing
    try:
        remove_file(f"{folder}/{CHECKSUM_FILE}")  # of an earlier attempt at this epoch
    except OSError as error:
        raise UsageError(f"cannot write {folder}: {error.strerror or error}") from None
    with whole_file(f"{folder}/{STATE_FILE}") as stream:
        stream.write(content)
    with whole_file(f"{folder}/{CHECKSUM_FILE}") as stream:
        stream.write(sha256(content).hexdigest().encode())


def load_state(folder: str) -> State:
    """The state in a checkpoint folder, on the CPU; nothing in it is executed.

    Raises:
        UsageError: if it is missing or damaged.
    """
    try:
        with open_file(f"{folder}/{STATE_FILE}") as stream:
            content = stream.read()
        try:
            with open_file(f"{folder}/{CHECKSUM_FILE}") as stream:
                expected = stream.read().decode()
        except FileNotFoundError:  # the process ended between the two files, each of which is whole
            expected = None
        if expected not in (None, sha256(content).hexdigest()):
            raise UsageError(f"checkpoint {folder}: its content differs from its checksum")
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except UsageError:
        raise
    except OSError as error:
        kind = UsageError if isinstance(error, FileNotFoundError) else UnreachableError
        raise kind(f"checkpoint {folder}: cannot be read ({type(error).__name__}: {error})") from None
    except Exception as error:  # the zip and pickle readers raise errors of all kinds
        raise UsageError(f"checkpoint {folder}: cannot be read ({type(error).__name__}: {error})") from None


def load_newest(folder: str, newest: str) -> tuple[State, str]:
    """The state of a trial's checkpoint, or of the newest one before it that is not damaged.

    Args:
        folder: folder of the trial's checkpoints.
        newest: name of the first checkpoint to try; names sort by age.

    Returns:
        The state and the name of its checkpoint.

    Raises:
        UsageError: if none can be read.
    """
    problems: list[UsageError] = []
    names = [name for name in folders_in(folder) if name.startswith(EPOCH) and name <= newest]
    for name in sorted(names, reverse=True):
        try:
            return load_state(f"{folder}/{name}"), name
        except UsageError as error:
            problems.append(error)
            log.warning("%s; trying the one before", error)
    kind = UnreachableError if any(isinstance(error, UnreachableError) for error in problems) else UsageError
    raise kind("; ".join(map(str, problems)) or f"no checkpoint in {folder}")
