"""Several nodes on this machine: one is announced to go away and goes, and the trial moves to another."""

import os
import time
from pathlib import Path

import pytest
import ray
import torch.multiprocessing as mp
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2
from test_faults import assert_same_end, train, trial, when  # noqa: F401  # trial is a fixture

from sweeps.cluster import QUIET
from trainer.checkpoints import load_state
from trainer.config import Trial


def start_nodes():
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes.others = [nodes.add_node(num_cpus=2) for _ in range(2)]
    env = QUIET | {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1", "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.2",
                   "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}  # fmt: skip
    ray.init(address=nodes.address, runtime_env={"env_vars": env}, log_to_driver=False)
    return nodes


def announce(nodes):
    """As a cloud tells a minute before it takes a machine back."""
    free = ray._private.state.available_resources_per_node()
    nodes.leaving = next(node for node in nodes.others if free[node.node_id].get("CPU", 0) < 1)  # the one that trains
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline = int((time.time() + 60) * 1000)
    accepted, why = GcsClient(address=nodes.address).drain_node(nodes.leaving.node_id, reason, "spot", deadline)
    assert accepted, why


def lose_a_node(_, settings, storage):
    """Train while the node goes away, then once more undisturbed; in a process that had no other cluster before."""
    trial, folder, nodes = Trial(**settings), Path(storage, "t"), start_nodes()  # noqa: F811
    announced = when((folder / "epoch_0001/state.pt.sha256").exists, lambda: announce(nodes))
    left = when(
        lambda: list(folder.glob("epoch_*_step_*/state.pt.sha256")),
        lambda: nodes.remove_node(nodes.leaving, allow_graceful=False),
    )
    assert train(trial, storage, "t").metrics["epoch"] == 3
    assert announced
    assert left, "no checkpoint was made just in time"
    assert len([path for path in folder.iterdir() if path.is_dir()]) == 2
    train(trial, storage, "undisturbed")
    ray.shutdown()
    nodes.shutdown()


@pytest.mark.slow
def test_a_node_that_goes_away_costs_no_step(trial, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # the nodes talk through loopback
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    mp.spawn(lose_a_node, (trial.to_dict(), str(tmp_path)))
    assert_same_end(tmp_path / "t", load_state(str(tmp_path / "undisturbed/epoch_0003")))
