"""Load of the machine, as MLflow's own monitors name and measure it."""

import threading
import time
from pathlib import Path

import pytest
import torch
from mlflow.system_metrics.metrics import gpu_monitor
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor

from trainer import system_metrics as module
from trainer.system_metrics import record_system_metrics, system_metrics

CPU = torch.device("cpu")


def test_names_and_values_are_those_of_mlflow():
    monitor = CPUMonitor()
    system_metrics(CPU)
    time.sleep(0.2)
    monitor.collect_metrics()
    mine, theirs = system_metrics(CPU), {f"system/{key}": value for key, value in monitor.aggregate_metrics().items()}
    assert set(mine) == set(theirs)
    for key in ("system/system_memory_usage_megabytes", "system/system_memory_usage_percentage"):
        assert mine[key] == pytest.approx(theirs[key], rel=0.1)


@pytest.mark.parametrize("tells", [True, False])
def test_a_gpu_is_told_as_far_as_it_tells_itself(monkeypatch, tells):
    def utilization(device):
        if not tells:
            raise ModuleNotFoundError
        return 87

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (6e9, 8e9))
    monkeypatch.setattr(torch.cuda, "utilization", utilization)
    monkeypatch.setattr(torch.cuda, "power_draw", lambda device: 250_000)
    gpu = {key: value for key, value in system_metrics(torch.device("cuda:1")).items() if "gpu" in key}
    memory = {"system/gpu_1_memory_usage_megabytes": 2000.0, "system/gpu_1_memory_usage_percentage": 25.0}
    more = {"system/gpu_1_utilization_percentage": 87.0, "system/gpu_1_power_usage_watts": 250.0}
    assert gpu == memory | (more if tells else {})
    source = Path(gpu_monitor.__file__).read_text()
    assert all(key.removeprefix("system/gpu_1") in source for key in gpu)


def test_samples_come_while_the_block_lasts(monkeypatch):
    monkeypatch.setattr(module, "FIRST", 0.01)
    monkeypatch.setattr(module, "EVERY", 0.01)
    samples = []
    with record_system_metrics(lambda values, step: samples.append((values, step)), CPU):
        deadline = time.monotonic() + 30
        while len(samples) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert len(samples) >= 3
    assert all(abs(step - time.time()) < 60 for _, step in samples), "seconds, wherever the trial goes on"
    assert not [thread for thread in threading.enumerate() if thread.name == "system metrics"]


def test_what_cannot_be_told_ends_no_trial(monkeypatch, caplog):
    monkeypatch.setattr(module, "FIRST", 0.01)
    with record_system_metrics(lambda values, step: 1 / 0, CPU):
        time.sleep(0.3)
    assert caplog.text.count("system metrics unavailable: ZeroDivisionError") == 1
