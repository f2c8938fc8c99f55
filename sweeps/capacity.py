"""What fits on the cluster: the nodes it has, those its autoscaler may still bring, and the wait for the first."""

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import ray
import torch
import yaml
from ray.util import placement_group, remove_placement_group

from sweeps.cluster import address
from sweeps.settings import Sweep
from trainer.config import UsageError
from trainer.placement import Placement

T = TypeVar("T")

LAUNCHED = Path("~/ray_bootstrap_config.yaml")  # where `ray up` leaves its configuration on the head
LIMIT = 1800.0  # seconds that the autoscaler is given for the first nodes
PATIENCE = 600.0  # seconds after the head's start that on-premises machines are given to join
LOADERS = 6  # processes that decode for one GPU, where there are CPUs for them


@dataclass(frozen=True)
class Node:
    """A machine of the cluster.

    Args:
        alive: or else the autoscaler may bring it.
    """

    cpus: float
    gpus: float
    alive: bool = True

    def fits(self, placement: Placement) -> int:
        """How many workers find room."""
        fit = self.cpus / placement.cpus
        if placement.gpus:
            fit = min(fit, self.gpus / placement.gpus)
        return int(fit + 1e-6)


def nodes() -> list[Node]:
    """Nodes of the cluster that is joined, and those its autoscaler may add; before one is joined, this machine."""
    if not ray.is_initialized():
        return [Node(os.cpu_count() or 1, torch.cuda.device_count())]
    resources = [member["Resources"] for member in ray.nodes() if member["Alive"]]
    alive = [Node(there.get("CPU", 0), there.get("GPU", 0)) for there in resources]
    return alive + _coming(alive)


def _coming(alive: list[Node]) -> list[Node]:
    """What the launcher's configuration allows beyond the nodes that are alive."""
    launched = _launched()
    if launched is None:
        return []
    coming: list[Node] = []
    for name, kind in launched["available_node_types"].items():
        resources = kind.get("resources") or {}
        if name == launched["head_node_type"] or not resources:  # on-premises machines: known once they are there
            continue
        node = Node(resources.get("CPU", 0), resources.get("GPU", 0))
        count = kind.get("max_workers", launched["max_workers"]) - alive.count(node)
        coming += [Node(node.cpus, node.gpus, alive=False)] * count
    coming.sort(key=lambda node: (node.gpus, node.cpus), reverse=True)
    return coming[: max(0, launched["max_workers"] - (len(alive) - 1))]


def _launched() -> dict[str, Any] | None:
    """The configuration of the launcher that made this machine the head; None if none did or it is not a head."""
    path = LAUNCHED.expanduser()
    return yaml.safe_load(path.read_text()) if path.exists() and address() is not None else None


def wait_for_machines(say: Callable[[str], None]) -> None:
    """Let on-premises machines, which `ray up` prepares after the head, join the cluster before they are counted."""
    launched = _launched()
    if launched is None or launched["provider"]["type"] != "local":
        return
    wanted, began, said_at = 1 + len(launched["provider"]["worker_ips"]), _head_started(), -math.inf
    while True:
        joined, now = len({member["NodeManagerAddress"] for member in ray.nodes()}), time.time()
        if joined >= wanted:  # one that was lost since is not waited for
            return
        if now - began > PATIENCE:
            say(f"continuing without {wanted - joined} of {wanted} machines")
            return
        if now - said_at > 30:
            say(f"waiting for machines, {joined} of {wanted} have joined")
            said_at = now
        time.sleep(1)


def _head_started() -> float:
    """Seconds since the epoch, by the name of Ray's session: `session_`, the head's local time, and more."""
    session = ray.get_runtime_context().get_session_name()
    return time.mktime(time.strptime(session[: len("session_2026-01-31_23-59-59")], "session_%Y-%m-%d_%H-%M-%S"))


def worker_defaults() -> tuple[float, int]:
    """GPUs and decoding processes of a worker: one GPU where there are any, and its share of the node's CPUs."""
    shares = [node.cpus / node.gpus for node in nodes() if node.gpus]
    return (1.0, max(0, min(LOADERS, int(min(shares)) - 1))) if shares else (0.0, 0)


def slots(sweep: Sweep, trials: int | None = None) -> int:
    """How many trials fit on the cluster at once; of `trials`, by default those of the search.

    Raises:
        UsageError: if not even one fits.
    """
    there, need = nodes(), sweep.placement
    fit = sum(node.fits(need) for node in there) // need.workers
    if fit < 1:
        raise UsageError(
            f"a trial needs {per_trial(need)}, the cluster has {in_words(there)}; "
            "lower `workers`, `loader_workers` or `gpus_per_worker`"
        )
    return min(fit, sweep.max_concurrent or fit, trials or sweep.total_trials)


def per_trial(placement: Placement) -> str:
    """Such as `2 workers x 7 CPU and 1 GPU`."""
    gpus = f" and {placement.gpus:g} GPU" if placement.gpus else ""
    return f"{placement.workers} worker{'s' if placement.workers > 1 else ''} x {placement.cpus:g} CPU{gpus}"


def in_words(there: list[Node]) -> str:
    """Such as `3 nodes with 12 CPU and 4 GPU, and may get 2 more with 16 CPU and 8 GPU`."""
    alive, coming = ([node for node in there if node.alive is state] for state in (True, False))
    return _sum(alive, "node") + (f", and may get {_sum(coming, 'more')}" if coming else "")


def _sum(some: list[Node], what: str) -> str:
    plural = "s" if what == "node" and len(some) != 1 else ""
    cpus, gpus = sum(node.cpus for node in some), sum(node.gpus for node in some)
    return f"{len(some)} {what}{plural} with {cpus:g} CPU and {gpus:g} GPU"


def wait_for_room(placement: Placement, say: Callable[[str], None], limit: float = LIMIT) -> None:
    """Let the autoscaler bring what one trial needs.

    Args:
        limit: seconds after which to give up.

    Raises:
        UsageError: if the nodes have not come by then.
    """
    group, began, pause = placement_group([placement.bundle()] * placement.workers), time.monotonic(), 2.0
    try:
        while not group.wait(pause):
            waited = time.monotonic() - began
            if waited > limit:
                raise UsageError(
                    f"no room for a trial after {waited / 60:.0f} minutes: the cluster has {in_words(nodes())}; "
                    "`ray status` on the head says why no node came"
                )
            say(f"waiting for room for the first trial, {waited / 60:.0f} of {limit / 60:.0f} min: {in_words(nodes())}")
            pause = 30.0
    finally:
        remove_placement_group(group)


def where_workers_compute(
    placement: Placement, function: Callable[..., T], *what: Any, progress: Any, **named: Any
) -> T:
    """Call `function(*what, device, cache, progress)`: in this process, or on a worker if GPUs are only there.

    Args:
        function: function to call; on a worker without `progress`.
        what: first arguments of the function.
        progress: the argument after device and cache.
    """
    device = torch.device("cuda" if placement.gpus else "cpu")
    if device.type == "cuda" and not torch.cuda.is_available():  # a head without a GPU
        return on_a_worker(placement, function, *what, device, placement.cache, **named)
    return function(*what, device, placement.cache, progress, **named)


def on_a_worker(placement: Placement, function: Callable[..., T], *arguments: Any, **named: Any) -> T:
    """Call a function where a trial's worker would run.

    Raises:
        Exception: what the function raises.
    """
    there = ray.remote(num_cpus=placement.cpus, num_gpus=placement.gpus)(function)
    try:
        return ray.get(there.remote(*arguments, **named))
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
