"""A trial's checkpoints: folders `epoch_0002` with state.pt, and its sha256 beside it, in a folder or an object store.

A state appears under its name only when it is whole. One that was damaged afterwards is passed over for an older one.
"""

import io
import logging
from hashlib import sha256

import torch

from trainer.config import UsageError
from trainer.fit import State
from trainer.locations import folders_in, open_file, remove_file, whole_file
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
    except Exception as error:  # whatever the zip and pickle readers say to what is no checkpoint
        raise UsageError(f"checkpoint {folder}: cannot be read ({type(error).__name__}: {error})") from None


def load_newest(folder: str, newest: str) -> tuple[State, str]:
    """The state of a trial's checkpoint, or of the newest one before it that is not damaged.

    Args:
        folder: of the trial's checkpoints.
        newest: name of the checkpoint to begin with; names sort by age.

    Returns:
        The state and the name of its checkpoint.

    Raises:
        UsageError: if none can be read.
    """
    problems = []
    names = [name for name in folders_in(folder) if name.startswith(EPOCH) and name <= newest]
    for name in sorted(names, reverse=True):
        try:
            return load_state(f"{folder}/{name}"), name
        except UsageError as error:
            problems.append(str(error))
            log.warning("%s; trying the one before", error)
    raise UsageError("; ".join(problems) or f"no checkpoint in {folder}")
