"""Several nodes on this machine: one goes away, announced or not, and the trial moves to another."""

import dataclasses
import os
import time
from pathlib import Path

import pytest
import ray
import torch
import torch.multiprocessing as mp
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2
from test_faults import assert_same_end, train, trial, when  # noqa: F401  # trial is a fixture
from test_tuning import processes

from sweeps.cluster import QUIET
from sweeps.recording import start_sweep
from sweeps.settings import Sweep
from sweeps.tuning import ERRORS, run_sweep
from trainer.checkpoint_io import load_state
from trainer.config import Trial
from trainer.placement import Placement


def start_nodes(others=2):
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes.others = [nodes.add_node(num_cpus=2) for _ in range(others)]
    env = QUIET | {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1", "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.2",
                   "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}  # fmt: skip
    ray.init(address=nodes.address, runtime_env={"env_vars": env}, log_to_driver=False)
    return nodes


def training(nodes):
    """The node that trains."""
    free = ray._private.state.available_resources_per_node()
    return next(node for node in nodes.others if free.get(node.node_id, {"CPU": 2}).get("CPU", 0) < 1)


def announce(nodes):
    """As a cloud tells a minute before it takes a machine back."""
    nodes.leaving = training(nodes)
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline = int((time.time() + 60) * 1000)
    accepted, why = GcsClient(address=nodes.address).drain_node(nodes.leaving.node_id, reason, "spot", deadline)
    assert accepted, why


def make_sweep(settings, storage):
    sweep = Sweep(
        name="s", storage=storage, tracking_uri=f"sqlite:///{storage}/mlflow.db", regularizers=("none",),
        trial=Trial(**settings), placement=Placement(workers=2),
    )  # fmt: skip
    Path(sweep.folder).mkdir()

    def saved(name):
        return lambda: list(Path(sweep.trials_folder).glob(f"*/{name}/state.pt.sha256"))

    return sweep, saved


def lose_a_node(_, settings, storage):
    """Sweep while the node goes away, then train once more undisturbed; in a process that had no cluster before."""
    nodes = start_nodes()
    sweep, saved = make_sweep(settings, storage)

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
    assert len(list(Path(storage, "t").glob("epoch_*"))) == 2
    train(sweep.trial, storage, "undisturbed")
    ray.shutdown()
    nodes.shutdown()


def lose_nodes(_, settings, storage):
    """Sweep while one node after the other is lost with all that drives and trains the trial."""
    nodes = start_nodes(settings["epochs"])
    sweep, saved = make_sweep(settings, storage)
    drivers = []

    def lose():
        for epoch in range(1, sweep.trial.epochs):
            while not saved(f"epoch_{epoch:04d}")():
                time.sleep(0.02)
            drivers.append(processes("ImplicitFunc")[0].pid)
            node = training(nodes)
            nodes.others.remove(node)
            nodes.remove_node(node, allow_graceful=False)

    lost = when(lambda: True, lose)
    (row,) = run_sweep(sweep, start_sweep(sweep, {}), {})
    assert row.status == "finished"
    assert lost
    assert len(set(drivers)) == sweep.trial.epochs - 1 > ERRORS, "the trial's process did not go with its node"
    Path(storage, "t").symlink_to(Path(row.checkpoint).parent)
    train(sweep.trial, storage, "undisturbed")
    ray.shutdown()
    nodes.shutdown()


@pytest.fixture
def loopback(monkeypatch):
    """The nodes talk through loopback."""
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")


@pytest.mark.slow
def test_nodes_that_are_lost_use_up_no_try_of_their_trial(trial, tmp_path, loopback):  # noqa: F811
    trial = dataclasses.replace(trial, regularizer="none", weight=0.0, epochs=4, images_per_epoch=1280)
    mp.spawn(lose_nodes, (trial.to_dict(), str(tmp_path)))
    ended, undisturbed = (load_state(str(tmp_path / name / "epoch_0004")) for name in ("t", "undisturbed"))
    for name, value in undisturbed["model"].items():
        assert torch.equal(value, ended["model"][name]), name


@pytest.mark.slow
def test_a_node_that_goes_away_costs_no_step(trial, tmp_path, loopback):  # noqa: F811
    trial = dataclasses.replace(trial, regularizer="none", weight=0.0)
    mp.spawn(lose_a_node, (trial.to_dict(), str(tmp_path)))
    assert_same_end(tmp_path / "t", load_state(str(tmp_path / "undisturbed/epoch_0003")))
