"""Ctrl-C while Tune runs, without Tune."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from sweeps import interrupt
from sweeps.interrupt import end_if_asked, saving

ROOT = Path(__file__).parents[2]


class Switch:
    """Stands for the handle of the actor; what it answers is the answer itself."""

    def __init__(self):
        self.calls, self.names = 0, set()
        self.request_stop = SimpleNamespace(remote=self.count)
        self.saved_trials = SimpleNamespace(remote=lambda: set(self.names))

    def count(self):
        self.calls += 1


@pytest.fixture
def ends(monkeypatch):
    """How often Tune was asked to end."""
    monkeypatch.setattr(interrupt.ray, "get", lambda answer: answer)
    asked = []
    before = signal.signal(signal.SIGUSR1, lambda *_: asked.append(True))
    yield asked
    signal.signal(signal.SIGUSR1, before)


def press():
    os.kill(os.getpid(), signal.SIGINT)


def test_tune_ends_once_when_every_trial_has_saved_its_state(ends):
    def run():
        with saving(switch):
            end_if_asked({"a", "b"}, said.append)
            press()
            switch.names = {"a"}
            end_if_asked({"a", "b"}, said.append)
            assert (ends, said) == ([], [])
            switch.names = {"a", "b"}
            end_if_asked({"a", "b"}, said.append)
            end_if_asked({"a", "b"}, said.append)

    switch, said = Switch(), []
    with pytest.raises(KeyboardInterrupt):
        run()
    assert (switch.calls, ends, said) == (1, [True], ["interrupted: every trial saved its state"])


def test_trials_that_do_not_save_are_not_waited_for_for_ever(ends, monkeypatch):
    def run():
        with saving(Switch()):
            press()
            end_if_asked({"a", "b"}, said.append)

    said = []
    monkeypatch.setattr(interrupt, "LIMIT", -1.0)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert said == ["interrupted: 2 of 2 trials did not save their state in time and resume from their last epoch"]


def test_the_second_time_it_ends_at_once_and_a_later_run_knows_of_neither(ends):
    def run():
        with saving(Switch()):
            press()
            press()
            pytest.fail("the second had no effect")

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert ends == []
    with saving(Switch()):
        end_if_asked({"a"}, pytest.fail)
    assert signal.getsignal(signal.SIGINT) is before


def test_no_import_sets_an_environment_variable():
    modules = [
        str(path.relative_to(ROOT).with_suffix("")).replace("/", ".")
        for package in ("regularizers", "trainer", "sweeps")
        for path in (ROOT / package).rglob("*.py")
        if path.stem not in ("__main__", "all_regularizers", "resume_best")  # these are run
    ]
    code = (
        "import importlib, os, sys\n"
        "import matplotlib, mlflow, ray.train.torch, sklearn, torch\n"  # what they set is theirs
        "before = dict(os.environ)\n"
        "for name in sys.argv[1:]: importlib.import_module(name.removesuffix('.__init__'))\n"
        "changed = {name for name, value in os.environ.items() if before.get(name) != value}\n"
        "print(*changed)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, *modules], cwd=ROOT, text=True, stdout=subprocess.PIPE)
    assert (ended.returncode, ended.stdout.strip()) == (0, "")
