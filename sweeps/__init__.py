"""Many trials: Optuna proposes, Ray Tune runs, MLflow records.

    from sweeps import Sweep

    result = Sweep().run()
    result.table(), result.pick, result.front, result.trial(7).load_model()

Files in reading order: settings, folder, presets, run (prepare, embedded, start_weights, start_check, search, tuning,
trainable, finalists, finalize), results, train_on; events, recording and tracking/ keep what happens; messages,
terminal, summary, status and report/ show it. dial and rule_stopping are a search and an early stopping by the
selection rule, which tests/benchmarks/search_quality.py judges; sweeps do not use them yet.
"""

from sweeps.results import SweepResult, TrialResult
from sweeps.settings import Sweep
from trainer.config import Trial
from trainer.placement import Placement

__all__ = ["Placement", "Sweep", "SweepResult", "Trial", "TrialResult"]
