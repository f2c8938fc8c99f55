"""Where trials run: the Ray cluster there is, joined, or a Ray instance of this machine, started and ended."""

import contextlib
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray._private.utils import read_ray_address

from trainer.config import UsageError

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("regularizers", "trainer", "sweeps")
QUIET = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # also the pace of reports; the default is 2 s
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",  # autoscaling takes minutes
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "60",  # a stopped trial ends its workers before its process takes the next one
}
ALONE = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}  # no other machine could take over


def address() -> str | None:
    """HOST:PORT of the cluster there is: RAY_ADDRESS (`local` is none), or what `ray start` began on this machine.

    Not the private Ray instance of another sweep on this machine, which would end with that sweep.
    """
    there = os.environ.get("RAY_ADDRESS") or read_ray_address()
    return None if there in (None, "local") else there


def where() -> str:
    """What `ray_cluster` will do, in words."""
    there = address()
    if there is None:
        return "starting Ray"
    changed = max(path.stat().st_mtime for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
    age = time.strftime("%Y-%m-%d %H:%M", time.localtime(changed))
    return f"joining the Ray cluster at {there} with the code in {ROOT}, last changed {age}"


@contextlib.contextmanager
def ray_cluster(num_cpus: int | None = None, verbose: bool = False, stock: bool = False) -> Iterator[None]:
    """The cluster there is, or one of this machine alone that ends with the block.

    Args:
        num_cpus: number of CPUs of a cluster of this machine alone, whatever else there is.
        verbose: whether what Ray and the workers say reaches the terminal; a cluster of this machine then has Ray's
            dashboard, which more than doubles its processes and their memory.
        stock: whether stock Ray Train will run: what removes the placement group of a trial that was stopped asks the
            dashboard, so that is there.

    Raises:
        UsageError: if the cluster there should be does not answer.
    """
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # sweeps.interrupt has one that lets trials save their state
    there = address() if num_cpus is None else None
    quiet: dict[str, Any] = {} if verbose else {"log_to_driver": False, "logging_level": logging.ERROR}
    if there is None:
        port = _free_port()
        dashboard: dict[str, Any] = {"include_dashboard": verbose or stock, "dashboard_port": port}
        ray.init(address="local", num_cpus=num_cpus, runtime_env=_alone(port), **dashboard, **quiet)
    else:
        check_answers(there)
        ray.init(address=there, runtime_env=_shipped(), **quiet)
    try:
        yield
    finally:
        ray.shutdown()


def check_answers(there: str) -> None:
    """Refuse a cluster that is gone: Ray itself would wait for a minute and then end the process.

    Raises:
        UsageError: if it does not answer.
    """
    host, _, port = there.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError):
        source = "RAY_ADDRESS names" if os.environ.get("RAY_ADDRESS") else "an earlier `ray start` noted"
        raise UsageError(
            f"{source} a Ray cluster at {there}; it does not answer; RAY_ADDRESS=local runs without it"
        ) from None


def _free_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return unused.getsockname()[1]


def _alone(port: int) -> dict[str, Any]:
    """What the processes of this machine's own Ray instance run with.

    Args:
        port: port of its dashboard, which is not to be mistaken for that of another instance on this machine.
    """
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    own = {"PYTHONPATH": path, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{port}"}
    return {"env_vars": QUIET | ALONE | own}


def _shipped() -> dict[str, Any]:
    """The code as this process has it goes to every node, whatever older copy lies there.

    `ray job submit --working-dir` has done so already, and two working folders are an error.
    """
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("runtime_env") or {}
    env: dict[str, Any] = {"env_vars": QUIET}
    if "working_dir" not in job:
        others = [f"/{path.name}" for path in ROOT.iterdir() if path.name not in PACKAGES]  # results and data, perhaps
        env |= {"working_dir": str(ROOT), "excludes": others}
    return env
