"""Where trials run: a Ray instance of this machine, and how many trials fit on it."""

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import ray

from sweeps.settings import Sweep
from trainer.config import UsageError

QUIET = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # also the pace of reports; the default is 2 s
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",  # autoscaling takes minutes
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "60",  # a stopped trial ends its workers before its process takes the next one
}


@contextlib.contextmanager
def local_cluster(num_cpus: int | None = None) -> Iterator[None]:
    """A Ray instance of this machine alone, ended with the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # The clean-up of stopped trials asks the dashboard; on a machine with several Ray instances it must know which.
    env = QUIET | {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{port}"}
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "5")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # sweeps.interrupt has one that lets trials save their state
    root = str(Path(__file__).resolve().parents[1])
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    ray.init(
        address="local",
        num_cpus=num_cpus,
        include_dashboard=True,
        dashboard_port=port,
        runtime_env={"env_vars": env},
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    try:
        yield
    finally:
        ray.shutdown()


def slots(sweep: Sweep, trials: int | None = None) -> int:
    """How many trials fit on the cluster at once; of `trials`, by default those of the search.

    Raises:
        UsageError: if not even one fits.
    """
    have, need = ray.cluster_resources(), sweep.placement
    fit = int(have.get("CPU", 0) // (need.workers * need.cpus_per_worker))
    if need.gpus_per_worker:
        fit = min(fit, int(have.get("GPU", 0) // (need.workers * need.gpus_per_worker)))
    if fit < 1:
        raise UsageError(
            f"a trial needs {need.workers} worker(s) x {need.cpus_per_worker:g} CPU and {need.gpus_per_worker:g} GPU, "
            f"the cluster has {have.get('CPU', 0):g} CPU and {have.get('GPU', 0):g} GPU; "
            "lower --workers-per-trial or --gpus-per-worker"
        )
    return min(fit, sweep.max_concurrent or fit, trials or sweep.total_trials)
