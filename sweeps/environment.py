"""What other libraries take from the environment alone: set by scripts and where MLflow is reached, by no import."""

import os

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
    """Set what the user has not set otherwise."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
