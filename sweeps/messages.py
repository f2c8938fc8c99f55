"""What a running sweep reports: small values, passed to one callback.

The terminal (`sweeps.terminal`) is such a callback. Without one, stages, notes and how each trial ends go to `logging`.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from sweeps.events import Event, TrialEnded, TrialStarted
from trainer.metrics import VAL_ACCURACY, VAL_ROBUST_ACCURACY

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """Something begins."""

    text: str


@dataclass(frozen=True)
class Note:
    """A line for the user.

    Args:
        warning: whether it warns that the result may be inconclusive.
    """

    text: str
    warning: bool = False


@dataclass(frozen=True)
class Advanced:
    """The stage that began last went on.

    Args:
        done: fraction of the stage, in [0, 1].
    """

    name: str
    done: float


@dataclass(frozen=True)
class TrialsBegan:
    """A run of Tune begins or goes on; the events of its trials follow, as the log has them.

    Args:
        slots: trials at a time.
        earlier: events of its trials that an earlier process logged.
    """

    total: int
    epochs: int
    slots: int
    earlier: tuple[Event, ...] = ()


@dataclass(frozen=True)
class TrialsGoOn:
    """Trials are running; sent a few times a second."""


@dataclass(frozen=True)
class TrialsEnded:
    """The run of Tune is over."""


Message = Stage | Note | Advanced | TrialsBegan | TrialsGoOn | TrialsEnded | Event
Progress = Callable[[Message], None]


def to_log(message: Message) -> None:
    """The callback of a sweep that was given none."""
    match message:
        case Stage(text):
            log.info(text)
        case Note(text, warning):
            log.log(logging.WARNING if warning else logging.INFO, text)
        case TrialStarted():
            log.info("trial %s begins: %s", message.trial_id, message.name)
        case TrialEnded():
            figures = (100 * message.metrics.get(name, 0.0) for name in (VAL_ACCURACY, VAL_ROBUST_ACCURACY))
            ended = message.error or "accuracy {:.1f} %, robust {:.1f} %".format(*figures)
            log.info("trial %s ended after epoch %d: %s", message.trial_id, message.epoch, ended)


# Tune restores its own callback from a pickle, without arguments; so the callback of a sweep is found here.
_LISTENER: ContextVar[Progress] = ContextVar("progress", default=to_log)


@contextmanager
def told_to(progress: Progress | None) -> Iterator[None]:
    """Within the block, messages go to this callback."""
    before = _LISTENER.set(progress or to_log)
    try:
        yield
    finally:
        _LISTENER.reset(before)


def tell(message: Message) -> None:
    """Send a message to the callback of this sweep."""
    _LISTENER.get()(message)


def stage(text: str) -> None:
    """Send a `Stage`."""
    tell(Stage(text))


def note(text: str) -> None:
    """Send a `Note`."""
    tell(Note(text))
