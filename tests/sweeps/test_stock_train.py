"""Sweeps on Ray Train as Ray has it."""

import dataclasses
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray
from mlflow import MlflowClient
from recorded import run_of
from test_faults import when
from test_tuning import StopsL2, processes, sweep  # noqa: F401  # the last is a fixture

from sweeps.cluster import ray_cluster
from sweeps.early_stopping import make_scheduler
from sweeps.recording import start_sweep
from sweeps.tuning import run_sweep
from trainer.placement import Placement

ROOT = Path(__file__).parents[2]


def test_what_is_changed_of_ray_train_is_not_imported_for_stock():
    code = (
        "import sys, sweeps.trainable, sweeps.tuning, trainer.ray_trial\n"
        "from trainer.placement import Placement; from trainer.ray_driver import _trainer\n"
        "print(_trainer(Placement(ray_train='stock'), True).__name__, 'trainer.lean_trainer' in sys.modules)\n"
        "print(_trainer(Placement(), True).__name__, 'trainer.lean_trainer' in sys.modules)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, stdout=subprocess.PIPE, check=True)
    assert ended.stdout.splitlines() == ["TorchTrainer False", "InTrialTrainer True"]


@pytest.mark.slow
def test_a_sweep_on_stock_ray_train_ends_and_frees_what_it_took(sweep, tmp_path, monkeypatch):  # noqa: F811
    def stopping(sweep):
        scheduler = make_scheduler(sweep)
        scheduler.__class__ = StopsL2
        return scheduler

    monkeypatch.setattr("sweeps.tuning.make_scheduler", stopping)
    placement = Placement(workers=2, ray_train="stock")
    sweep = dataclasses.replace(sweep, regularizers=("l2",), trials_per_regularizer=2, placement=placement)  # noqa: F811
    with ray_cluster(num_cpus=2, stock=True):  # one trial at a time: what one does not free, the next waits for
        controlled = when(lambda: processes("TrainController"), lambda: None)
        recording = start_sweep(sweep, {})
        rows = run_sweep(sweep, recording, {"l2": 1.0})
        deadline = time.monotonic() + 60
        while ray.available_resources().get("CPU", 0) < 2 and time.monotonic() < deadline:
            time.sleep(0.5)
        assert ray.available_resources()["CPU"] == 2
        groups = ray.util.placement_group_table().values()
        assert [group for group in groups if group["state"] != "REMOVED"] == []
    assert controlled
    assert sorted((row.regularizer, row.status) for row in rows) == [
        ("l2", "stopped"), ("l2", "stopped"), ("none", "finished"), ("none", "finished")
    ]  # fmt: skip
    for row in rows:
        steps = [
            point.step
            for point in MlflowClient(sweep.tracking_uri).get_metric_history(
                run_of(recording, row.trial_id), "step/loss"
            )
        ]
        assert len(steps) == len(set(steps)) > 0
        assert Path(row.checkpoint, "state.pt").exists()
