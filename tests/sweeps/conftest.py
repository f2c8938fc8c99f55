"""The shipped scripts as a user runs them; what they leave is seen, and ended, after each test."""

import contextlib
import os
import subprocess
import sys
import uuid
from pathlib import Path

import psutil
import pytest
import timm_on_cpu  # noqa: F401
from mlflow_server import database, empty_database, server  # noqa: F401
from object_store import object_store  # noqa: F401

ROOT = Path(__file__).parents[2]


class Scripts:
    """Starts scripts, each in a session of its own, and knows every process that came of them."""

    def __init__(self):
        self.mark = f"test-{uuid.uuid4()}"

    def __call__(self, name, *arguments, **environment):
        return subprocess.Popen(
            [sys.executable, name if name == "-m" else str(ROOT / "sweeps" / name), *map(str, arguments)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"COLUMNS": "80", "STARTED_BY": self.mark} | environment,
            start_new_session=True,
        )

    def processes(self):
        """Those that have not ended; Ray's own change their command line, but not their environment."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("STARTED_BY") == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def kill(self):
        """Every process that came of the scripts, as a loss of the machine would; some end by themselves meanwhile."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def assert_gone(self):
        """Ray's helpers notice the end of their node a moment later."""
        _, left = psutil.wait_procs(self.processes(), timeout=60)
        assert not left


@pytest.fixture
def start():
    """Start a script; every process it leaves is ended after the test."""
    scripts = Scripts()
    yield scripts
    scripts.kill()


@pytest.fixture
def script(start):
    """Run a script to its end: exit status, output, errors."""

    def _script(name, *arguments, timeout=60, **environment):
        process = start(name, *arguments, **environment)
        out, err = process.communicate(timeout=timeout)
        return process.returncode, out, err

    return _script


@pytest.fixture
def asked(digits, tmp_path):
    """The sweep of these arguments, on the digits as one's own data."""
    from asking import parse

    def ask(*arguments):
        return parse("--data", digits, "--model", "resnet8", "--storage", tmp_path, "--name", "s", *arguments)[0]

    return ask
