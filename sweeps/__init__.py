"""Many trials: Optuna proposes, Ray Tune runs, MLflow records."""

import os

# Ray reads this once, when it is imported: that a trial brings helper processes is no news to anybody.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "PYTHON worker processes have been started")
