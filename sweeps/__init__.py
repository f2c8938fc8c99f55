"""Many trials: Optuna proposes, Ray Tune runs, MLflow records.

    from sweeps import Sweep

    result = Sweep().run()
    result.table(), result.pick, result.front, result.trial(7).load_model()

Files in reading order: settings, presets, run (prepare, embedded, start_weights, start_check, search, tuning,
trainable, finalists, finalize), results, train_on; events, recording and tracking/ keep what happens; messages,
terminal, summary, status and report/ show it.
"""

from sweeps.results import SweepResult, TrialResult
from sweeps.settings import Sweep
from trainer.config import Trial

__all__ = ["Sweep", "SweepResult", "Trial", "TrialResult"]
