"""Reach MLflow: a server that may be away, or a database on this machine."""

import contextlib
import fcntl
import logging
import os
import socket
import textwrap
from pathlib import Path
from urllib.parse import urlsplit

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from sweeps.environment import set_environment
from trainer.errors import FieldError, UsageError

log = logging.getLogger(__name__)


def connect(uri: str) -> MlflowClient:
    """A client of a server that answers, or of a database that is whole.

    Raises:
        Exception: whatever MLflow's client raises.
    """
    set_environment()
    with contextlib.ExitStack() as held:
        if uri.startswith("sqlite:///"):  # processes that make the same database together break each other
            path = Path(uri.removeprefix("sqlite:///") + ".lock")
            path.parent.mkdir(parents=True, exist_ok=True)
            fcntl.flock(held.enter_context(path.open("w")), fcntl.LOCK_EX)
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    return client


def reason(error: Exception) -> str:
    """The error in one line."""
    text = str(error).partition("\n")[0]
    said = text if isinstance(error, MlflowException) and text else f"{type(error).__name__} {text}"
    return textwrap.shorten(said, 200, placeholder=" …")


def check_tracking(uri: str) -> None:
    """Check that the server or database answers; a server that is away for now is logged, not refused.

    Raises:
        UsageError: if the address cannot be right: no such scheme or host, or something that is not MLflow answers.
    """
    try:
        connect(uri)
    except Exception as error:
        if not _is_away(uri, error):
            remedy = f"no MLflow answers there; give http://HOST:PORT of a server or sqlite:///PATH ({reason(error)})"
            if uri == os.environ.get("MLFLOW_TRACKING_URI"):
                raise UsageError(f"MLFLOW_TRACKING_URI={uri}: {remedy}") from None
            raise FieldError("tracking_uri", uri, remedy) from None
        log.warning(
            "MLflow at %s does not answer yet. The sweep continues, and its metrics are queued in its storage.",
            uri,
        )


def _is_away(uri: str, error: Exception) -> bool:
    """Whether the host is there and no server answers on it, so that the address may well be right."""
    address = urlsplit(uri)
    if address.scheme not in ("http", "https") or not address.hostname:
        return False
    try:
        port = address.port or {"http": 80, "https": 443}[address.scheme]
        with socket.create_connection((address.hostname, port), timeout=5):
            pass
    except (ValueError, socket.gaierror):
        return False
    except OSError:
        return True
    # Something listens: silence, and what a proxy says for a dead server, have these codes; another service has not.
    return getattr(error, "error_code", "") in ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE")
