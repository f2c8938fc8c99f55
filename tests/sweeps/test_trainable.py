"""The process of a Tune trial."""

import subprocess
import sys
from pathlib import Path


def test_it_is_light():
    code = "import sys, sweeps.trainable, trainer.lean_trainer; print(*sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], text=True, stdout=subprocess.PIPE, check=True
    )
    assert {"torch", "optuna", "mlflow", "regularizers.base"}.isdisjoint(ended.stdout.split())
