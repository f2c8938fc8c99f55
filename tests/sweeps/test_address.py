"""The address of MLflow: one that cannot be right is refused, a server that is only away is not."""

import os
import subprocess
import sys

import pytest
from mlflow_server import free_port

from sweeps.tracking.server import check_tracking
from trainer.config import UsageError


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("htp:/typo", "no MLflow answers there"),
        ("http://no-such-host.invalid:5000", "no MLflow answers there"),
        ("http://127.0.0.1:PORT", "no MLflow answers there"),
    ],
)
def test_an_address_that_cannot_be_right_is_refused(uri, message, tmp_path):
    command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "0", "-d", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                          env=os.environ | {"PYTHONUNBUFFERED": "1"}) as other:  # fmt: skip
        port = other.stdout.readline().split("port ")[1].split()[0]
        try:
            with pytest.raises(UsageError, match=message):
                check_tracking(uri.replace("PORT", port))
        finally:
            other.kill()


def test_an_address_of_the_environment_is_named_so(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "foo")
    with pytest.raises(UsageError, match="^MLFLOW_TRACKING_URI=foo: no MLflow answers there"):
        check_tracking("foo")
    with pytest.raises(UsageError, match="^tracking_uri=foo://bar: no MLflow answers there"):
        check_tracking("foo://bar")


def test_a_server_that_is_away_is_told_of_and_not_refused(caplog):
    check_tracking(f"http://127.0.0.1:{free_port()}")
    assert "The sweep continues" in caplog.text
