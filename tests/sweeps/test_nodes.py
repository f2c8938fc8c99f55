"""Several nodes on this machine: one is announced to go away and goes, and the trial moves to another."""

import dataclasses
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
from sweeps.recording import start_sweep
from sweeps.settings import Sweep
from sweeps.tuning import run_sweep
from trainer.checkpoints import load_state
from trainer.config import Trial
from trainer.ray_trial import Placement


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
    """Sweep while the node goes away, then train once more undisturbed; in a process that had no cluster before."""
    trial, nodes = Trial(**settings), start_nodes()  # noqa: F811
    sweep = Sweep(
        name="s", storage=storage, tracking_uri=f"sqlite:///{storage}/mlflow.db", regularizers=(), trial=trial,
        placement=Placement(workers=2),
    )  # fmt: skip
    Path(sweep.folder).mkdir()

    def saved(name):
        return lambda: list(Path(sweep.trials_folder).glob(f"*/{name}/state.pt.sha256"))

    def known(part):
        """Of a checkpoint that Ray Train has heard of."""
        return lambda: any(part in path.read_text() for path in Path(sweep.trials_folder).glob("*/*_snapshot.json"))

    announced = when(saved("epoch_0001"), lambda: announce(nodes))
    left = when(known("_step_"), lambda: nodes.remove_node(nodes.leaving, allow_graceful=False))
    (row,) = run_sweep(sweep, start_sweep(sweep, {}), {})
    assert row.status == "finished"
    assert announced
    assert left, "no checkpoint was made just in time"
    Path(storage, "t").symlink_to(Path(row.checkpoint).parent)
    assert len([path for path in Path(storage, "t").iterdir() if path.is_dir()]) == 2
    train(trial, storage, "undisturbed")
    ray.shutdown()
    nodes.shutdown()


@pytest.mark.slow
def test_a_node_that_goes_away_costs_no_step(trial, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # the nodes talk through loopback
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    trial = dataclasses.replace(trial, regularizer="none", weight=0.0)
    mp.spawn(lose_a_node, (trial.to_dict(), str(tmp_path)))
    assert_same_end(tmp_path / "t", load_state(str(tmp_path / "undisturbed/epoch_0003")))
