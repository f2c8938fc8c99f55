"""How busy the machine is while a trial trains, under the names MLflow has for it."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator

import psutil
import torch

log = logging.getLogger(__name__)

FIRST, EVERY = 2.0, 10.0  # seconds until the first sample, and between two


def load(device: torch.device) -> dict[str, float]:
    """CPU since the last call, memory, and the GPU where there is one; in % and MB."""
    memory = psutil.virtual_memory()
    values = {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": memory.used / 1e6,
        "system_memory_usage_percentage": 100 * memory.used / memory.total,
    }
    if device.type == "cuda":
        name = f"gpu_{device.index or 0}"
        free, total = torch.cuda.mem_get_info(device)
        values[f"{name}_memory_usage_megabytes"] = (total - free) / 1e6
        values[f"{name}_memory_usage_percentage"] = 100 * (total - free) / total
        with contextlib.suppress(Exception):  # slices of a GPU, and some drivers, do not tell
            values[f"{name}_utilization_percentage"] = float(torch.cuda.utilization(device))
            values[f"{name}_power_usage_watts"] = torch.cuda.power_draw(device) / 1000
    return {f"system/{key}": value for key, value in values.items()}


@contextlib.contextmanager
def watched(record: Callable[[dict[str, float], int], None], device: torch.device) -> Iterator[None]:
    """Record the load every few seconds within the block, from a thread.

    Args:
        record: takes the values and the time (seconds since 1970), for a trial that goes on elsewhere counts on.
        device: the trial's.
    """
    ended = threading.Event()

    def sample() -> None:
        load(device)  # what it tells of the CPU is nothing
        pause = FIRST  # a short trial should have one too
        while not ended.wait(pause):
            try:
                record(load(device), int(time.time()))
            except Exception as error:  # no reason to fail
                log.warning("the load of the machine cannot be told: %s: %s", type(error).__name__, error)
                return
            pause = EVERY

    thread = threading.Thread(target=sample, name="load", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=5)  # a driver that hangs keeps no trial from its end
