"""How far a sweep is, from its files."""

import io
import json
import sys

import pytest
from rich.console import Console

from sweeps import spool, status
from sweeps.spool import SWEEP, Spool

MINUTE = 60_000


@pytest.fixture
def clock(monkeypatch):
    """Milliseconds that only pass when told to."""
    now = [1_000_000 * MINUTE]
    monkeypatch.setattr(spool, "_now", lambda: now[0])
    return now


@pytest.fixture
def running(tmp_path, clock):
    """A sweep of 2 regularizers, 3 trials each and 2 epochs, that began four minutes ago."""
    folder = tmp_path / "mine"
    folder.mkdir()
    settings = {"regularizers": ["l2", "none"], "trials_per_regularizer": 2, "extensions": [1], "seeds": 0}
    (folder / "settings.json").write_text(json.dumps(settings | {"trial": {"epochs": 2}}))
    Spool(folder / "spool", SWEEP).begin("mine", {}, {})
    for key, name, weight, epochs, state in (
        ("a", "none", 0.0, 2, "finished"), ("b", "l2", 5.0, 1, None), ("c", "l2", 50.0, 1, "stopped"),
        ("d", "none", 0.0, 0, None),
    ):  # fmt: skip
        trial = Spool(folder / "spool", key)
        trial.begin(name, {}, {"regularizer": name, "weight": weight, "strength": weight / 5})
        for epoch in range(1, epochs + 1):
            clock[0] += MINUTE
            trial.record({"step/loss": 1.0}, epoch)
            trial.record({"val/accuracy": 0.9, "val/robust_accuracy": 0.1 * epoch + weight / 1000}, epoch)
        trial.flush()
        if state:
            trial.end("KILLED", {"state": state})
    return tmp_path


def test_trials_and_the_time_left(running, clock):
    found = status.read_status(str(running), "mine")
    trials = {
        trial.trial_id: (trial.regularizer, trial.strength, len(trial.epochs), trial.state) for trial in found.trials
    }
    assert trials == {
        "a": ("none", 0.0, 2, "finished"), "b": ("l2", 1.0, 1, "training"), "c": ("l2", 10.0, 1, "stopped"),
        "d": ("none", 0.0, 0, "starting"),
    }  # fmt: skip
    # Four epochs in four minutes; left are one of b, two of d and two each of two trials that have not begun.
    assert found.seconds_left == 7 * 60
    line = status.headline(found, "mine", clock[0] / 1000 + 120)
    assert line == "mine: running, 2 of at most 6 trials done, at most 7 min left, last epoch reported 2 min ago"


def test_what_was_before_an_interruption_sets_no_pace(running, clock):
    sweep, waits = Spool(running / "mine/spool", SWEEP), Spool(running / "mine/spool", "b")
    waits.end("KILLED", {})
    sweep.end("KILLED", {})
    found = status.read_status(str(running), "mine")
    assert found.state == "interrupted"
    assert found.seconds_left is None
    assert {trial.trial_id: trial.state for trial in found.trials}["b"] == "interrupted"
    clock[0] += 1000 * MINUTE
    sweep.begin("mine", {}, {})
    waits.begin("l2", {}, {})
    assert status.read_status(str(running), "mine").seconds_left is None
    clock[0] += 3 * MINUTE
    waits.record({"val/accuracy": 0.9, "val/robust_accuracy": 0.3}, 2)
    waits.flush()
    assert status.read_status(str(running), "mine").seconds_left == 6 * 3 * 60


def test_the_pick_trained_further_is_no_trial_of_the_sweep(running):
    Spool(running / "mine/spool", "resume-a").begin("none resumed", {"resumed_from": "a"}, {})
    Spool(running / "mine/spool", "e").begin("none", {"finalist": "none"}, {"regularizer": "none"})
    again = {trial.trial_id: trial.again for trial in status.read_status(str(running), "mine").trials}
    assert again == {"a": False, "b": False, "c": False, "d": False, "e": True}


def test_the_table_has_those_that_run_first_and_fits_a_narrow_terminal(running):
    found = status.read_status(str(running), "mine")
    console = Console(width=80, file=io.StringIO())
    console.print(status.table(found.trials, found.epochs))
    lines = console.file.getvalue().splitlines()
    assert [line.split()[0] for line in lines[2:6]] == ["b", "d", "a", "c"]
    assert lines[2].split() == ["b", "l2", "1", "5", "1/2", "90.0", "10.5", "training"]


def test_what_is_not_there_is_one_line(running, monkeypatch, capsys):
    def run(name):
        monkeypatch.setattr(sys, "argv", ["status", "--name", name, "--storage", str(running)])
        return status.main(), capsys.readouterr()

    assert run("mine")[0] == 0
    (running / "mine/spool").rename(running / "elsewhere")
    (running / "begun").mkdir()  # a sweep that pretrains, say, has no settings yet
    for name, words in (("mine", "run this there"), ("other", "there is mine"), ("begun", "no trial has begun")):
        code, said = run(name)
        assert code == 2
        assert said.err.startswith("error: ")
        assert words in said.err
        assert said.err.count("\n") == 1
