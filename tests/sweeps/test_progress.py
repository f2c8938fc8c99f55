"""What the terminal shows while a sweep runs."""

import io
import pickle

import pytest
from rich.console import Console

from sweeps import progress as module
from sweeps.progress import Progress


def result(epoch, robust, accuracy=0.9):
    return {"epoch": epoch, "val/accuracy": accuracy, "val/robust_accuracy": robust, "train/images_per_second": 70.0}


@pytest.fixture
def clock(monkeypatch):
    """Seconds that only pass when told to."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def progress(clock):
    """Of four trials with two epochs each, two at a time, on a terminal of 80 columns."""
    progress = Progress(4, 2)
    progress.slots = 2
    progress._console = Console(file=io.StringIO(), width=80)
    return progress


def shown(progress):
    progress.console.print(progress._table())
    return progress.console.file.getvalue()


def test_best_so_far_is_of_trials_that_are_done(progress):
    progress.started("a", "l2 w=1", "l2", 1.0, 0.1)
    progress.reported("a", result(1, 0.9))  # few images were attacked
    progress.ended("a", "stopped", result(1, 0.9))
    assert "best" not in shown(progress)
    progress.started("b", "tv w=1", "tv", 1.0, 0.1)
    progress.reported("b", result(2, 0.4))
    progress.ended("b", "finished", result(2, 0.4))
    assert "best robust so far 40.0 % (tv w=1)" in shown(progress)


def test_the_live_table_says_who_trains_what_and_how_far(progress, clock):
    progress.started("1a2b3c4d", "tv_abs_unscaled w=0.0012", "tv_abs_unscaled", 0.0012, 30.0)
    progress.started("2b3c4d5e", "none", "none", 0.0, 0.0)
    lines = shown(progress).splitlines()
    assert "0 of 4 trials done | 2 of 2 slots in use" in lines[0]
    assert "left" not in lines[0]
    clock[0] += 60
    progress.reported("1a2b3c4d", result(1, 0.25))
    lines = shown(progress).splitlines()[-5:]
    rows = [line.split() for line in lines[-2:]]
    assert rows == [
        ["1a2b3c4d", "tv_abs_unscaled", "30", "0.0012", "1/2", "70", "90.0", "25.0", "training"],
        ["2b3c4d5e", "none", "-", "-", "0/2", "starting"],
    ]  # fmt: skip
    assert "about 7 min left" in lines[0]  # half a trial took a minute, three and a half are left
    assert "…" not in "".join(lines)


def test_a_resumed_sweep_counts_its_own_pace(progress, clock):
    for trial in "ab":
        progress.started(trial, "none", "none", 0.0, 0.0)
        progress.reported(trial, result(2, 0.1))
        progress.ended(trial, "finished", result(2, 0.1))
    clock[0] += 3600
    again = pickle.loads(pickle.dumps(progress))
    again._console = Console(file=io.StringIO(), width=80)
    assert "left" not in shown(again)
    again.started("c", "none", "none", 0.0, 0.0)
    clock[0] += 120
    again.ended("c", "finished", result(2, 0.1))
    assert "about 2 min left" in shown(again)
