"""Several nodes on this machine: one is announced to go away and goes, and the trial moves to another."""

import os
import time

import pytest
import ray
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2
from test_faults import assert_same_end, train, trial, when  # noqa: F401  # trial is a fixture

from sweeps.tuning import QUIET
from trainer.checkpoints import load_state


@pytest.fixture
def cluster(monkeypatch):
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # the nodes talk through loopback
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes.others = [nodes.add_node(num_cpus=2) for _ in range(2)]
    env = QUIET | {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1", "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.2",
                   "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}  # fmt: skip
    ray.init(address=nodes.address, runtime_env={"env_vars": env}, log_to_driver=False)
    yield nodes
    ray.shutdown()
    nodes.shutdown()


def busy(cluster):
    """The node that trains."""
    free = ray._private.state.available_resources_per_node()
    return next(node for node in cluster.others if free[node.node_id].get("CPU", 0) < 1)


def announce(cluster):
    """As a cloud tells a minute before it takes a machine back."""
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline = int((time.time() + 60) * 1000)
    cluster.leaving = busy(cluster)
    accepted, why = GcsClient(address=cluster.address).drain_node(cluster.leaving.node_id, reason, "spot", deadline)
    assert accepted, why


@pytest.mark.slow
def test_a_node_that_goes_away_costs_no_step(trial, tmp_path, cluster):  # noqa: F811
    folder = tmp_path / "t"
    announced = when((folder / "epoch_0001/state.pt.sha256").exists, lambda: announce(cluster))
    left = when(
        lambda: list(folder.glob("epoch_*_step_*/state.pt.sha256")),
        lambda: cluster.remove_node(cluster.leaving, allow_graceful=False),
    )
    assert train(trial, tmp_path, "t").metrics["epoch"] == 3
    assert announced
    assert left, "no checkpoint was made just in time"
    kept = {path.name for path in folder.iterdir() if path.is_dir()}
    assert "epoch_0003" in kept
    assert len(kept) == 2
    train(trial, tmp_path, "undisturbed")
    assert_same_end(folder, load_state(str(tmp_path / "undisturbed/epoch_0003")))
