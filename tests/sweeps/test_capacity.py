"""What fits on a cluster, from what it has and what its launcher may bring."""

import dataclasses
import re
import time
from pathlib import Path

import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config

from sweeps import capacity
from sweeps.capacity import in_words, nodes, slots, wait_for_machines, worker_defaults
from sweeps.cluster import ray_cluster
from sweeps.settings import Sweep
from trainer.config import Trial, UsageError
from trainer.placement import Placement

ROOT = Path(__file__).parents[2]


@pytest.fixture
def sweep(tmp_path):
    return Sweep(
        name="s",
        storage=str(tmp_path),
        tracking_uri="sqlite://",
        trial=Trial(data="unused", model="resnet8"),
        regularizers=("l2",),
        trials_per_regularizer=50,
        placement=Placement(workers=2, gpus_per_worker=1.0, cpus_per_worker=7.0),
    )


def node(cpus, gpus, alive=True, number=1):
    """As `ray.nodes()` tells of one; it leaves out what a node has none of."""
    resources = {name: float(count) for name, count in (("CPU", cpus), ("GPU", gpus)) if count}
    return {"Alive": alive, "Resources": resources, "NodeManagerAddress": f"10.0.0.{number}"}


@pytest.fixture
def launched(tmp_path, monkeypatch):
    """This machine is a head that `ray up` made, in a cluster that is joined; its nodes are up to the test."""

    def _launched(config, there):
        text = (ROOT / "cluster" / config).read_text()
        path = tmp_path / "launched.yaml"
        completed = re.sub(r"^  # (\w+: &)", r"  \1", text, flags=re.MULTILINE)
        path.write_text(yaml.dump(prepare_config(yaml.safe_load(completed))))
        monkeypatch.setattr(capacity, "LAUNCHED", path)
        monkeypatch.setattr(capacity, "address", lambda: "10.0.0.1:6379")
        monkeypatch.setattr(ray, "is_initialized", lambda: True)
        monkeypatch.setattr(ray, "nodes", lambda: there)

    return _launched


def test_machines_that_may_still_come_count(launched, sweep):
    head, worker = node(0, 0), node(48, 4)
    lost = node(48, 4, alive=False)
    launched("gpu.yaml", [head])
    assert in_words(nodes()) == "1 node with 0 CPU and 0 GPU, and may get 4 more with 192 CPU and 16 GPU"
    assert worker_defaults() == (1.0, 6)
    assert slots(sweep) == 8
    launched("gpu.yaml", [head, worker, lost, worker, worker])
    assert in_words(nodes()) == "4 nodes with 144 CPU and 12 GPU, and may get 1 more with 48 CPU and 4 GPU"
    assert slots(sweep) == 8
    assert slots(dataclasses.replace(sweep, max_concurrent=3)) == 3
    launched("gpu.yaml", [head] + [worker] * 4)
    assert "may get" not in in_words(nodes())


def test_a_worker_takes_no_more_cpus_than_its_share_and_none_fits_across_nodes(launched, sweep):
    launched("gpu.yaml", [node(0, 0)] + [node(8, 2)] * 4)
    assert worker_defaults() == (1.0, 3)
    launched("gpu.yaml", [node(0, 0)] + [node(6, 1)] * 4)
    with pytest.raises(UsageError, match="a trial needs 2 workers x 7 CPU and 1 GPU, the cluster has 5 nodes"):
        slots(sweep)


def test_before_a_cluster_is_joined_this_machine_counts(monkeypatch):
    monkeypatch.setattr(capacity.os, "cpu_count", lambda: 16)
    monkeypatch.setattr(capacity.torch.cuda, "device_count", lambda: 4)
    assert in_words(nodes()) == "1 node with 16 CPU and 4 GPU"
    assert worker_defaults() == (1.0, 3)


def test_machines_of_ones_own_are_waited_for_but_not_for_ever(launched, monkeypatch):
    members, said = [node(8, 1)], []
    launched("onprem.yaml", members)
    monkeypatch.setattr(capacity, "_head_started", lambda: started)
    monkeypatch.setattr(capacity.time, "sleep", lambda _: members.append(node(8, 1, number=len(members) + 1)))
    started = time.time()
    wait_for_machines(said.append)
    assert len(members) == 3
    assert said == ["waiting for machines, 1 of 3 have joined"]
    started -= capacity.PATIENCE
    members[:] = [node(8, 1)]
    wait_for_machines(said.append)
    assert said[1:] == ["continuing without 2 of 3 machines"]
    launched("gpu.yaml", [])
    wait_for_machines(pytest.fail)


@pytest.mark.slow
def test_a_cluster_tells_what_it_has_and_since_when():
    before = time.time()
    with ray_cluster(num_cpus=3):
        assert in_words(nodes()).startswith("1 node with 3 CPU")
        assert int(before) <= capacity._head_started() <= time.time()
