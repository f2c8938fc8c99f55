"""What a running sweep tells whoever started it: small values, to one callback.

The terminal (`sweeps.terminal`) is such a callback. Without one, stages and notes go to `logging`.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from sweeps.events import Event

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """Something begins.

    Args:
        text: what it is.
    """

    text: str


@dataclass(frozen=True)
class Note:
    """A line for the user.

    Args:
        text: the line.
        warning: whether it tells of what may keep the sweep from an answer.
    """

    text: str
    warning: bool = False


@dataclass(frozen=True)
class Advanced:
    """The stage that began last went on.

    Args:
        name: what is done now.
        done: fraction of the stage, in [0, 1].
    """

    name: str
    done: float


@dataclass(frozen=True)
class TrialsBegan:
    """A run of Tune begins or goes on; the events of its trials follow, as the log has them.

    Args:
        total: trials there will be.
        epochs: of each.
        slots: trials at a time.
        earlier: events of its trials that an earlier process logged.
    """

    total: int
    epochs: int
    slots: int
    earlier: tuple[Event, ...] = ()


@dataclass(frozen=True)
class TrialsGoOn:
    """Trials are running; told again and again, some times a second."""


@dataclass(frozen=True)
class TrialsEnded:
    """The run of Tune is over."""


Message = Stage | Note | Advanced | TrialsBegan | TrialsGoOn | TrialsEnded | Event
Progress = Callable[[Message], None]


def to_log(message: Message) -> None:
    """What is told where nobody asked for more."""
    match message:
        case Stage(text):
            log.info(text)
        case Note(text, warning):
            log.log(logging.WARNING if warning else logging.INFO, text)


# Tune restores its callback from a pickle and nobody can hand it anything, so it looks here, as all others do.
_LISTENER: ContextVar[Progress] = ContextVar("progress", default=to_log)


@contextmanager
def told_to(progress: Progress | None) -> Iterator[None]:
    """Within the block, this callback is told."""
    before = _LISTENER.set(progress or to_log)
    try:
        yield
    finally:
        _LISTENER.reset(before)


def tell(message: Message) -> None:
    """Tell the callback of this sweep."""
    _LISTENER.get()(message)


def stage(text: str) -> None:
    """Tell that something begins."""
    tell(Stage(text))


def note(text: str) -> None:
    """Tell a line."""
    tell(Note(text))
