"""How far a sweep is, from its files."""

import io

import pytest
from rich.console import Console

from sweeps import status
from sweeps.events import EpochReported, EventLog, SweepEnded, SweepStarted, TrialEnded, TrialStarted
from sweeps.folder import driving
from sweeps.ranking import rank
from sweeps.settings import Sweep
from trainer.errors import UsageError
from trainer.trial_log import TrialLog

MINUTE = 60_000
START = 1_000_000 * MINUTE


def trial(time, key, name, weight=0.0, **change):
    asked = dict(part="tune", regularizer=name, weight=weight, strength=weight / 5, seed=0, epochs=2, digest="d")
    return TrialStarted(time=time, trial_id=key, name=name, **asked | change)


def epoch(time, key, number, robust):
    metrics = {"epoch": float(number), "val/accuracy": 0.9, "val/robust_accuracy": robust}
    return EpochReported(time=time, trial_id=key, metrics=metrics)


@pytest.fixture
def log(tmp_path):
    """Of a sweep of 2 regularizers, 3 trials each and 2 epochs, that began four minutes ago."""
    folder = tmp_path / "mine"
    Sweep(
        name="mine", storage=str(tmp_path), regularizers=("l2", "none"), trials_per_regularizer=2, extensions=(1,),
        seeds=0,
    ).save()  # fmt: skip
    log = EventLog(folder / "events.jsonl")
    log.append(SweepStarted(time=START, name="mine"))
    passed = START
    for key, name, weight, epochs, ended in (
        ("a", "none", 0.0, 2, True), ("b", "l2", 5.0, 1, False), ("c", "l2", 50.0, 1, True),
        ("d", "none", 0.0, 0, False),
    ):  # fmt: skip
        log.append(trial(passed, key, name, weight))
        for number in range(1, epochs + 1):
            passed += MINUTE
            log.append(epoch(passed, key, number, 0.1 * number + weight / 1000))
        if ended:
            log.append(TrialEnded(time=passed, trial_id=key, epoch=epochs, digest="d"))
    return log


@pytest.fixture
def running(tmp_path, log):
    """The storage."""
    return tmp_path


def test_trials_and_the_time_left(running):
    found = status.read_status(str(running), "mine")
    trials = {
        trial.started.trial_id: (trial.started.regularizer, trial.started.strength, len(trial.reports), trial.state)
        for trial in found.trials
    }
    assert trials == {
        "a": ("none", 0.0, 2, "finished"), "b": ("l2", 1.0, 1, "training"), "c": ("l2", 10.0, 1, "stopped"),
        "d": ("none", 0.0, 0, "starting"),
    }  # fmt: skip
    # Four epochs in four minutes; left are one of b, two of d and two each of two trials that have not begun.
    assert found.seconds_left == 7 * 60
    line = status.headline(found, "mine", START / 1000 + 4 * 60 + 120)
    assert line == "mine: running, 2 of at most 6 trials done, at most 7 min left, last epoch reported 2 min ago"


def test_what_was_before_an_interruption_sets_no_pace(running, log):
    log.append(SweepEnded(time=START + 5 * MINUTE, status="KILLED"))
    found = status.read_status(str(running), "mine")
    assert found.state == "interrupted"
    assert found.seconds_left is None
    assert [trial.state for trial in found.trials] == ["finished", "interrupted", "stopped", "interrupted"]
    later = START + 1000 * MINUTE
    log.append(SweepStarted(time=later, name="mine"))
    log.append(trial(later, "b", "l2", 5.0))
    found = status.read_status(str(running), "mine")
    assert [trial.state for trial in found.trials] == ["finished", "training", "stopped", "interrupted"]
    assert found.seconds_left is None
    log.append(epoch(later + 3 * MINUTE, "b", 2, 0.3))
    assert status.read_status(str(running), "mine").seconds_left == 4 * 3 * 60


def test_a_sweep_whose_driver_was_killed_is_interrupted(running):
    assert status.read_status(str(running), "mine").state == "running"
    (running / "mine/.driver").touch()  # as it is left, and locked by nobody
    assert status.read_status(str(running), "mine").state == "interrupted"


def test_the_pick_trained_further_is_no_trial_of_the_sweep(running, log):
    log.append(trial(START, "resume-a", "none", part="", resumed_from="a"))
    log.append(trial(START, "e", "none", repeats=True))
    again = {one.started.trial_id: one.started.repeats for one in status.read_status(str(running), "mine").trials}
    assert again == {"a": False, "b": False, "c": False, "d": False, "e": True}


def test_a_trial_that_is_trained_further_is_shown_with_its_own_epochs(running, log):
    log.append(SweepEnded(time=START + 5 * MINUTE, status="FINISHED"))
    log.append(SweepStarted(time=START + 6 * MINUTE, name="mine"))
    log.append(trial(START + 6 * MINUTE, "resume-a", "none", part="", resumed_from="a", number=7, epochs=4))
    written = TrialLog(str(running / "mine/trials/resume-a"), "d", epoch=3)
    written.report({"val/accuracy": 0.8, "val/robust_accuracy": 0.4}, 30)
    with driving(Sweep.load("mine", running)):
        found = status.read_status(str(running), "mine")
        assert status.main(["--name", "mine", "--storage", str(running)]) == 0
    assert (found.state, found.seconds_left) == ("ended", None)
    assert "mine: ended, 4 trials, trial #07 is being trained further, last epoch" in status.headline(found, "mine", 0)
    console = Console(width=80, file=io.StringIO())
    console.print(status.table([found.continued]))
    row = console.file.getvalue().splitlines()[2].split()
    assert row == ["#07", "resumed", "none", "-", "-", "3/4", "80.0", "40.0", "training"]
    found = status.read_status(str(running), "mine")
    assert (found.state, found.continued) == ("ended", None), "its process was killed"


def test_a_sweep_that_is_being_prepared_is_no_error(tmp_path, capsys):
    sweep = Sweep(name="new", storage=str(tmp_path))
    with driving(sweep, new=True):
        assert status.main(["--name", "new", "--storage", str(tmp_path)]) == 0
        assert capsys.readouterr().out == "new: preparing data, checkpoint and weights; no trial has begun\n"
        with pytest.raises(UsageError, match="is still being prepared; wait"):
            Sweep.load("new", tmp_path)
    assert status.main(["--name", "new", "--storage", str(tmp_path)]) == 2
    assert "no trial has begun; its preparation ended before the search" in capsys.readouterr().err
    with pytest.raises(UsageError, match="^sweep 'new' ended before its search began; give its command again$"):
        Sweep.load("new", tmp_path)


def test_the_status_in_python_is_short_and_has_a_table(running):
    found = status.read_status(str(running), "mine")
    assert len(repr(found)) < 100
    table = found.table().set_index("trial_id")
    assert table.loc["c", ["state", "epoch", "val/robust_accuracy"]].tolist() == ["stopped", 1.0, pytest.approx(0.15)]
    assert list(table.index) == list("abcd")
    assert len(status.Status(state="preparing").table()) == 0


def test_the_table_has_those_that_run_first_and_fits_a_narrow_terminal(running):
    found = status.read_status(str(running), "mine")
    console = Console(width=80, file=io.StringIO())
    console.print(status.table(found.trials))
    lines = console.file.getvalue().splitlines()
    assert [line.split()[0] for line in lines[2:6]] == ["b", "d", "a", "c"]
    assert lines[2].split() == ["b", "l2", "1", "5", "1/2", "90.0", "10.5", "training"]


def test_trials_that_ended_stand_as_in_the_ranking(running, log):
    for key, epochs, accuracy, robust in (
        ("z", 2, 0.8, 0.3),
        ("e", 2, 0.7, 0.3),
        ("f", 1, 0.9, 0.9),
        ("g", 2, 0.8, 0.3),
    ):
        metrics = {"val/accuracy": accuracy, "val/robust_accuracy": robust}
        log.append(trial(START, key, "none"))
        for number in range(1, epochs + 1):
            log.append(EpochReported(time=START + 1, trial_id=key, metrics={"epoch": float(number)} | metrics))
        log.append(TrialEnded(time=START + 2, trial_id=key, epoch=epochs, digest="d", metrics=metrics))
    found = [one for one in status.read_status(str(running), "mine").trials if one.started.trial_id in "zefgb"]
    console = Console(width=80, file=io.StringIO())
    console.print(status.table(found))
    shown = [line.split()[0] for line in console.file.getvalue().splitlines()[2:7]]
    assert shown == ["b", *(row.trial_id for row in rank([one.result() for one in found if one.ended]))]
    assert shown == ["b", "g", "z", "e", "f"]


def test_what_is_not_there_is_one_line(running, capsys):
    def run(name):
        return status.main(["--name", name, "--storage", str(running)]), capsys.readouterr()

    assert run("mine")[0] == 0
    (running / "mine/events.jsonl").rename(running / "elsewhere")
    (running / "begun").mkdir()  # a sweep that pretrains, say, has no settings yet
    for name, words in (
        ("mine", "run this there"),
        ("other", "it has mine"),
        ("begun", "no trial has begun; data, checkpoint and weights are being prepared, or that"),
    ):
        code, said = run(name)
        assert code == 2
        assert said.err.startswith("error: ")
        assert words in said.err
        assert said.err.count("\n") == 1
