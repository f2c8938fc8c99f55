"""Load of the machine while a trial trains, under MLflow's names of system metrics."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator

import psutil
import torch

from trainer.metrics import Metrics, metric

log = logging.getLogger(__name__)

FIRST, EVERY = 2.0, 10.0  # seconds before the first sample, and between two


def system_metrics(device: torch.device) -> Metrics:
    """Use of the CPU since the last call, of memory, and of the GPU where there is one; in %, MB and W."""
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
        with contextlib.suppress(Exception):  # not available on slices of a GPU, nor from some drivers
            values[f"{name}_utilization_percentage"] = float(torch.cuda.utilization(device))
            values[f"{name}_power_usage_watts"] = torch.cuda.power_draw(device) / 1000
    return {metric("system", name): value for name, value in values.items()}


@contextlib.contextmanager
def record_system_metrics(record: Callable[[Metrics, int], None], device: torch.device) -> Iterator[None]:
    """Record the load every few seconds within the block, from a thread.

    Args:
        record: callback; it takes the values and the time in seconds since 1970, so that the values of a trial that
            moves to another machine stay in order.
    """
    ended = threading.Event()

    def sample() -> None:
        system_metrics(device)  # the first use of the CPU is measured since nothing
        pause = FIRST  # a short trial should have one too
        while not ended.wait(pause):
            try:
                record(system_metrics(device), int(time.time()))
            except Exception as error:  # no reason to fail
                log.warning("system metrics unavailable: %s: %s", type(error).__name__, error)
                return
            pause = EVERY

    thread = threading.Thread(target=sample, name="system metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=5)  # a driver that hangs keeps no trial from its end
