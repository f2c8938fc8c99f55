"""What fits on a cluster, from what it has and what its launcher may bring."""

import dataclasses
import re
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config

from sweeps import capacity
from sweeps.capacity import Node, in_words, slots, wait_for_machines, worker_defaults
from sweeps.settings import Sweep
from trainer.config import Trial, UsageError
from trainer.ray_trial import Placement

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


@pytest.fixture
def launched(tmp_path, monkeypatch):
    """This machine is a head that `ray up` made; which nodes are alive is up to the test."""

    def _launched(config, alive):
        text = (ROOT / "cluster" / config).read_text()
        path = tmp_path / "launched.yaml"
        completed = re.sub(r"^  # (\w+: &)", r"  \1", text, flags=re.MULTILINE)
        path.write_text(yaml.dump(prepare_config(yaml.safe_load(completed))))
        monkeypatch.setattr(capacity, "LAUNCHED", path)
        monkeypatch.setattr(capacity, "address", lambda: "10.0.0.1:6379")
        monkeypatch.setattr(capacity, "nodes", lambda: alive + capacity._coming(alive))

    return _launched


def test_machines_that_may_still_come_count(launched, sweep):
    head, worker = Node(0, 0), Node(48, 4)
    launched("gpu.yaml", [head])
    assert in_words(capacity.nodes()) == "1 node with 0 CPU and 0 GPU, and may get 4 more with 192 CPU and 16 GPU"
    assert worker_defaults() == (1.0, 6)
    assert slots(sweep) == 8
    launched("gpu.yaml", [head, worker, worker, worker])
    assert in_words(capacity.nodes()) == "4 nodes with 144 CPU and 12 GPU, and may get 1 more with 48 CPU and 4 GPU"
    assert slots(sweep) == 8
    assert slots(dataclasses.replace(sweep, max_concurrent=3)) == 3
    launched("gpu.yaml", [head] + [worker] * 4)
    assert "may get" not in in_words(capacity.nodes())


def test_a_worker_takes_no_more_cpus_than_its_share_and_none_fits_across_nodes(launched, sweep):
    launched("gpu.yaml", [Node(0, 0)] + [Node(8, 2)] * 4)
    assert worker_defaults() == (1.0, 3)
    launched("gpu.yaml", [Node(0, 0)] + [Node(6, 1)] * 4)
    with pytest.raises(UsageError, match="a trial needs 2 workers x 7 CPU and 1 GPU, the cluster has 5 nodes"):
        slots(sweep)


def test_machines_of_ones_own_are_waited_for_but_not_for_ever(launched, monkeypatch):
    def member(number):
        return SimpleNamespace(node_manager_address=f"10.0.0.{number}", start_time_ms=started)

    members, said, started = [], [], 1000 * time.time()
    members.append(member(1))
    launched("onprem.yaml", [])
    monkeypatch.setattr(capacity, "_members", lambda: members)
    monkeypatch.setattr(capacity.time, "sleep", lambda seconds: members.append(member(len(members) + 1)))
    wait_for_machines(said.append)
    assert len(members) == 3
    assert said == ["waiting for machines, 1 of 3 have joined"]
    started -= 1000 * capacity.PATIENCE
    members[:] = [member(1)]
    wait_for_machines(said.append)
    assert said[1:] == ["going on without 2 of 3 machines"]
    launched("gpu.yaml", [])
    wait_for_machines(pytest.fail)
