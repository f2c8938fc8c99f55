"""Ctrl-C: once, and trials save their state before the sweep ends, to be resumed; twice, and it ends at once."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from trainer.stop import StopSwitch

LIMIT = 60.0  # seconds that trials are given to save their state


class Interruption:
    """Whether the user has asked a run of Tune to end, and whether it has."""

    def __init__(self, switch: Any) -> None:
        self.switch = switch
        self.asked_at: float | None = None
        self.ended = False

    def ask(self, *_: Any) -> None:
        """Handle the first Ctrl-C; the next one has its usual effect."""
        self.asked_at = time.monotonic()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self.switch.request_stop.remote()

    def end_if_saved(self, running: set[str], say: Callable[[str], None]) -> None:
        """End Tune if that was asked for, once all trials have saved their state or had their time to."""
        if self.asked_at is None or self.ended:
            return
        waiting = running - ray.get(self.switch.saved_trials.remote())
        if waiting and time.monotonic() - self.asked_at <= LIMIT:
            return
        what = (
            f"{len(waiting)} of {len(running)} trials did not save their state in time and resume from their last epoch"
            if waiting
            else "every trial saved its state"
        )
        say(f"interrupted: {what}")
        self.ended = True
        os.kill(os.getpid(), signal.SIGUSR1)  # Tune's own way to an orderly end


# A callback that Tune restores comes from a pickle, and nobody can hand it anything; so it looks here.
_OF_THIS_RUN: ContextVar[Interruption | None] = ContextVar("interruption", default=None)


def open_switch() -> Any:
    """Start the actor on this node through which trials on any node are asked to save; it ends with its handle."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(StopSwitch)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
    return actor.options(**options).remote()


@contextmanager
def saving(switch: Any) -> Iterator[None]:
    """Within the block, Ctrl-C asks for an end that loses nothing.

    Raises:
        KeyboardInterrupt: at the end of the block, if it was asked for and not everything had ended by then.
    """
    interruption = Interruption(switch)
    before, token = signal.signal(signal.SIGINT, interruption.ask), _OF_THIS_RUN.set(interruption)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        _OF_THIS_RUN.reset(token)
    if interruption.ended:
        raise KeyboardInterrupt


def asked() -> bool:
    """Whether the user has asked for an end."""
    interruption = _OF_THIS_RUN.get()
    return interruption is not None and interruption.asked_at is not None


def end_if_asked(running: set[str], say: Callable[[str], None]) -> None:
    """Called again and again while trials run: ends Tune once all have saved their state."""
    interruption = _OF_THIS_RUN.get()
    if interruption is not None:
        interruption.end_if_saved(running, say)
