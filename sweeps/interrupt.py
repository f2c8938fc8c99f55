"""Ctrl-C: once, and trials save their state before the sweep ends, to be resumed; twice, and it ends at once."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from trainer.stop import StopSwitch

LIMIT = 60.0  # seconds that trials are given to save their state

# A process has one keyboard.
_asked_at: float | None = None
_ended = False
_switch: Any = None


def open_switch() -> Any:
    """Start the actor on this node through which trials on any node are asked to save; it ends with its handle."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(StopSwitch)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
    return actor.options(**options).remote()


@contextmanager
def saving(switch: Any) -> Iterator[None]:
    """Within the block, Ctrl-C asks for an end that loses nothing.

    Args:
        switch: the `StopSwitch` that running trials look at.

    Raises:
        KeyboardInterrupt: at the end of the block, if it was asked for and not everything had ended by then.
    """
    global _asked_at, _ended, _switch
    _asked_at, _ended, _switch = None, False, switch

    def first(*_: Any) -> None:
        global _asked_at
        _asked_at = time.monotonic()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        switch.ask.remote()

    before = signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if _ended:
        raise KeyboardInterrupt


def end_if_asked(running: set[str], say: Callable[[str], None]) -> None:
    """Called again and again while trials run: ends Tune once all have saved their state.

    Args:
        running: ids of the trials that train.
        say: takes a line for the user.
    """
    global _ended
    if _asked_at is None or _ended:
        return
    saved = ray.get(_switch.saved.remote())
    waiting, late = running - saved, time.monotonic() - _asked_at > LIMIT
    if waiting and not late:
        return
    what = (
        f"{len(waiting)} of {len(running)} trials did not save theirs in time and resume from their last epoch"
        if waiting
        else "every trial saved its state"
    )
    say(f"interrupted: {what}")
    _ended = True
    os.kill(os.getpid(), signal.SIGUSR1)  # Tune's own way to an orderly end
