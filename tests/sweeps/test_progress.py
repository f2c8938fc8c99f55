"""What the terminal shows while a sweep runs."""

import io

import pytest
from rich.console import Console

from sweeps import progress as module
from sweeps.events import EpochReported, TrialEnded, TrialStarted
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
    progress = Progress(4, 2, Console(file=io.StringIO(), width=80))
    progress.slots = 2
    return progress


def shown(progress):
    progress.console.print(progress._table())
    return progress.console.file.getvalue()


def started(progress, trial_id, name, regularizer="none", weight=0.0, strength=0.0):
    asked = dict(part="tune", regularizer=regularizer, weight=weight, strength=strength, seed=0, epochs=2, digest="d")
    event = TrialStarted(trial_id=trial_id, name=name, **asked)
    progress.take(event)
    return event


def reported(progress, trial_id, epoch, robust):
    event = EpochReported(trial_id=trial_id, metrics=result(epoch, robust))
    progress.take(event)
    return event


def ended(progress, trial_id, epoch):
    event = TrialEnded(trial_id=trial_id, epoch=epoch, digest="d")
    progress.take(event)
    return event


def test_best_so_far_is_of_trials_that_are_done(progress):
    started(progress, "a", "l2 w=1", "l2", 1.0, 0.1)
    reported(progress, "a", 1, 0.9)  # few images were attacked
    ended(progress, "a", 1)
    assert "best" not in shown(progress)
    assert "[1/4] l2 w=1: stopped, accuracy 90.0 %, robust 90.0 %" in shown(progress)
    started(progress, "b", "tv w=1", "tv", 1.0, 0.1)
    reported(progress, "b", 2, 0.4)
    ended(progress, "b", 2)
    assert "best robust so far 40.0 % (tv w=1)" in shown(progress)


def test_the_live_table_says_who_trains_what_and_how_far(progress, clock):
    started(progress, "1a2b3c4d", "tv_abs_unscaled w=0.0012", "tv_abs_unscaled", 0.0012, 30.0)
    started(progress, "2b3c4d5e", "none")
    lines = shown(progress).splitlines()
    assert "0 of 4 trials done | 2 of 2 slots in use" in lines[0]
    assert "left" not in lines[0]
    clock[0] += 60
    reported(progress, "1a2b3c4d", 1, 0.25)
    lines = shown(progress).splitlines()[-5:]
    rows = [line.split() for line in lines[-2:]]
    assert rows == [
        ["1a2b3c4d", "tv_abs_unscaled", "30", "0.0012", "1/2", "70", "90.0", "25.0", "training"],
        ["2b3c4d5e", "none", "-", "-", "0/2", "starting"],
    ]  # fmt: skip
    assert "about 7 min left" in lines[0]  # half a trial took a minute, three and a half are left
    assert "…" not in "".join(lines)


def test_a_resumed_sweep_counts_its_own_pace(progress, clock):
    log = []
    for trial in "ab":
        log += [started(progress, trial, "none"), reported(progress, trial, 2, 0.1), ended(progress, trial, 2)]
    log.append(started(progress, "lost", "none"))  # Tune had not kept it when it was killed
    log += [started(progress, "other", "none"), ended(progress, "other", 2)]
    clock[0] += 3600
    again = Progress(4, 2, Console(file=io.StringIO(), width=80))
    again.replay([event for event in log if event.trial_id in ("a", "b", "c", "d")])
    assert "left" not in shown(again)
    assert "2 of 4 trials done" in shown(again)
    assert "best robust so far 10.0" in shown(again)
    started(again, "c", "none")
    clock[0] += 120
    ended(again, "c", 2)
    assert "about 2 min left" in shown(again)


def test_a_trial_that_is_tried_again_is_done_once(progress):
    started(progress, "a", "none")
    progress.take(TrialEnded(trial_id="a", error="broken"))
    assert "[1/4] none: failed, broken" in shown(progress)
    started(progress, "a", "none")
    reported(progress, "a", 1, 0.1)
    assert "0 of 4 trials done" in shown(progress)
    ended(progress, "a", 2)
    assert progress.done == 1


class Closed(dict):
    """Trials that can be looked up and not gone through."""

    def __iter__(self):
        raise AssertionError("all trials are looked at")

    keys = values = items = __iter__


def test_a_line_costs_the_same_however_many_trials_there_were(progress):
    progress.trials = Closed()
    started(progress, "a", "l2 w=1", "l2", 1.0, 0.1)
    reported(progress, "a", 1, 0.5)
    reported(progress, "a", 2, 0.4)
    ended(progress, "a", 2)
    started(progress, "b", "tv w=1")
    assert "1 of 4 trials done" in shown(progress)
    assert "best robust so far 40.0 % (l2 w=1)" in shown(progress)


def test_a_thousand_trials_at_once_fit_on_the_terminal(progress):
    for number in range(1000):
        started(progress, f"t{number}", "none")
    ended(progress, "t1", 2)
    lines = progress.console.file.getvalue().count("\n")
    table = shown(progress).splitlines()[lines:]
    assert len(table) < progress.console.height
    assert "999 of 2 slots in use" in table[0]
    assert [row.split()[0] for row in table[3:6]] == ["t0", "t2", "t3"]


def test_the_live_table_is_drawn_a_few_times_a_second_however_often_tune_steps(progress, clock, monkeypatch):
    drawn = []
    progress.console = Console(file=io.StringIO(), width=80, force_terminal=True)
    monkeypatch.setattr(progress, "_table", lambda: drawn.append(clock[0]) or "")
    for _ in range(1000):
        progress.tick()
    clock[0] += module.EVERY
    progress.tick()
    progress.close()
    assert drawn == [1000, 1000 + module.EVERY]
