"""What the scripts see to before they import PyTorch, Ray or MLflow."""

import os
from pathlib import Path

from trainer.errors import UsageError

ROOT = Path(__file__).resolve().parents[1]

SETTINGS = {
    # Ray reads this when it is imported. That a trial brings helper processes is no news to anybody.
    "RAY_DEDUP_LOGS_SKIP_REGEX": "PYTHON worker processes have been started",
    # MLflow reads these whenever it sends. What waits is tried again anyway, and nobody waits for a server that hangs.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # an address for every run that ends
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # a bar for every file
}


def set_environment() -> None:
    """Set what libraries take from the environment alone, unless the user has; no import does."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)


def check_copy(script: str) -> None:
    """Refuse to run the script that `ray submit` has just brought with an older project.

    Raises:
        UsageError: if it is a copy and differs from the project's own.
    """
    copy, own = Path(script).resolve(), ROOT / "sweeps" / Path(script).name
    if copy.read_bytes() != own.read_bytes():
        raise UsageError(f"{copy} is not the {own.name} of {ROOT}; `ray rsync-up` the project before `ray submit`")
