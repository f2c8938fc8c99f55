"""What drives a trial's workers: which Ray Train it uses, and that it stays light."""

import subprocess
import sys
from pathlib import Path

import pytest
import ray

from trainer.placement import TESTED_RAY, Placement

ROOT = Path(__file__).parents[2]


def test_another_ray_than_the_tested_one_runs_stock(monkeypatch):
    assert f"ray=={TESTED_RAY}" in (ROOT / "constraints.txt").read_text().splitlines()
    monkeypatch.setattr(ray, "__version__", TESTED_RAY)
    assert Placement().lean
    assert not Placement(ray_train="stock").lean
    monkeypatch.setattr(ray, "__version__", "2.999.0")
    assert not Placement().lean


@pytest.mark.parametrize("module", ["placement", "ray_driver", "lean_trainer", "epoch_report", "stop"])
def test_the_driving_process_imports_no_pytorch(module):
    code = f"import sys, trainer.{module}; print(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, stdout=subprocess.PIPE, check=True)
    assert {"torch", "optuna", "mlflow", "regularizers.base"}.isdisjoint(ended.stdout.split())
