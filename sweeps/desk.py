"""The driver's desk: an actor beside the driver through which trials on any node reach it.

Workers hand in their points here, and the desk puts them into the sweep's spool on the driver's disk; no folder need be
shared for that. Here they also hear that the sweep is asked to end.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sweeps.spool import Line, Spool
from trainer.stop import StopSwitch


class Desk(StopSwitch):
    """Takes what trials hand in.

    Args:
        folder: of the sweep's spool.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self._spools: dict[str, Spool] = {}

    def take(self, key: str, lines: list[Line]) -> None:
        """Append to a trial's spool; returns once the lines are on disk."""
        self._spools.setdefault(key, Spool(self.folder, key)).append(lines)


def open_desk(folder: Path) -> Any:
    """Start the desk on this node; it ends with its handle."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(Desk)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
    return actor.options(**options).remote(folder)


@dataclass
class Handed(Spool):
    """A trial's spool for a process that need not see its folder.

    Args:
        desk: handle of the `Desk`.
    """

    desk: Any = None

    def append(self, lines: list[Line]) -> None:
        """Hand lines in, and wait until they are on the driver's disk."""
        try:
            ray.get(self.desk.take.remote(self.key, lines))
        except RayError as error:
            raise OSError(f"the driver does not answer ({type(error).__name__})") from error
