"""A real MLflow server on loopback."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
from mlflow import MlflowClient


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(what, seconds=120):
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def run_of(client, trial_id):
    """Id of a trial's run, found as a user would: by its tag."""
    # Not imported with the conftest: mlflow.pytorch then silences the root logger, and caplog with it.
    from sweeps.tracking.runs import EXPERIMENT, TRIAL_TAG

    experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
    (run,) = client.search_runs([experiment], f"tags.`{TRIAL_TAG}` = '{trial_id}'")
    return run.info.run_id


class Server:
    """`mlflow server` on loopback, which can be killed and started again on the same port and database."""

    def __init__(self, folder):
        self.folder, self.port, self.process = folder, free_port(), None
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self):
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port),
                   "--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder}/server.db",
                   "--artifacts-destination", str(self.folder / "artifacts")]  # fmt: skip
        self.process = subprocess.Popen(
            command, cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        wait_for(self.answers)

    @property
    def client(self):
        return MlflowClient(self.uri)

    def answers(self):
        with contextlib.suppress(Exception):
            return bool(MlflowClient(self.uri).search_experiments(max_results=1))
        return False

    def kill(self):
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory):
    """Made once: it takes many seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    MlflowClient(f"sqlite:///{path}").search_experiments(max_results=1)
    return path


@pytest.fixture
def database(empty_database, tmp_path):
    """URI of a database of its own."""
    return f"sqlite:///{shutil.copy(empty_database, tmp_path / 'mlflow.db')}"


@pytest.fixture
def server(tmp_path, empty_database):
    (tmp_path / "server").mkdir()
    shutil.copy(empty_database, tmp_path / "server/server.db")
    server = Server(tmp_path / "server")
    yield server
    server.kill()
