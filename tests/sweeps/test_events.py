"""The event log comes back as it was written, after a kill and on another machine."""

import dataclasses
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from recorded import new_sweep

from sweeps.events import (
    KINDS,
    Event,
    EventLog,
    PartEnded,
    ResultWritten,
    StartMeasured,
    SweepEnded,
    SweepStarted,
    TrialStarted,
    open_log,
)
from sweeps.tracking.cursor import Cursor, Cursors

ROOT = Path(__file__).parents[2]


def example(kind, draw):
    """An event of a kind with something in every field."""
    values = {"str": lambda: f"ä {draw.random()}", "int": lambda: draw.randrange(1, 99), "float": draw.random,
              "bool": lambda: True, "tuple[str, ...]": lambda: ("a", "b"), "dict[str, str]": lambda: {"k": "v"},
              "int | None": lambda: draw.randrange(1, 99),
              "dict[str, float]": lambda: {"val/x": float("inf"), "val/y": draw.random()}}  # fmt: skip
    names = {str: "str", int: "int", float: "float", bool: "bool"}
    return kind(**{f.name: values[names.get(f.type, str(f.type))]() for f in dataclasses.fields(kind)})


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_kind_comes_back_as_it_was(tmp_path, kind):
    log, event = EventLog(tmp_path / "s/events.jsonl"), example(kind, random.Random(0))
    log.append(event)
    assert list(log) == [event]
    assert type(next(iter(log))) is kind


def test_events_have_their_own_time_and_place(tmp_path):
    log, before = EventLog(tmp_path / "events.jsonl"), int(time.time() * 1000)
    log.append(SweepStarted(name="s"))
    log.append(SweepEnded(status="FINISHED"))
    (first, middle), (second, end) = log.read()
    assert before <= first.time <= second.time <= int(time.time() * 1000)
    assert list(log.read(middle)) == [(second, end)]
    assert end == log.size()
    assert list(EventLog(tmp_path / "none").read()) == []


def test_the_half_line_of_a_killed_process_is_cut_off(tmp_path):
    log = EventLog(tmp_path / "events.jsonl")
    for name in ("a", "b"):
        log.append(SweepStarted(name=name))
    log.path.write_bytes(log.path.read_bytes()[:-5])
    assert [event.name for event in log] == ["a"]
    log.append(SweepStarted(name="c"))
    assert [event.name for event in log] == ["a", "c"]
    assert [json.loads(line) for line in log.path.read_text().splitlines()]


WRITE = """
import sys
from pathlib import Path
from sweeps.events import EventLog, PartEnded
log = EventLog(Path(sys.argv[1]))
number = len(list(log))
while True:
    log.append(PartEnded(part=str(number), trials=("x" * 2000,)))
    print(number, flush=True)
    number += 1
"""


def test_what_a_killed_writer_has_written_stays(tmp_path):
    path, written = tmp_path / "events.jsonl", 0
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITE, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )  # fmt: skip
        for _ in range(20):
            written = int(process.stdout.readline()) + 1
        process.send_signal(signal.SIGKILL)
        written = max([written, *(int(line) + 1 for line in process.communicate()[0].splitlines())])
        parts = [event.part for event in EventLog(path)]
        assert parts == [str(number) for number in range(len(parts))]
        assert len(parts) >= written


def test_another_machine_finds_the_copy_in_the_bucket(tmp_path, object_store):
    object_store.create_bucket(Bucket="events")
    sweep = new_sweep("s3://events/sweeps", "", local_dir=str(tmp_path / "first"))
    log = open_log(sweep)
    log.append(SweepStarted(name="s"))
    log.back_up()
    log.append(PartEnded(part="tune", trials=()))
    log.back_up()
    log.append(SweepEnded(status="KILLED"))  # after Tune's last snapshot
    other = open_log(dataclasses.replace(sweep, local_dir=str(tmp_path / "second")))
    assert list(other) == list(log)[:2]
    assert list(open_log(sweep)) == list(log), "the machine's own is newer"
    log.back_up()
    assert list(open_log(dataclasses.replace(sweep, local_dir=str(tmp_path / "second")))) == list(log), "looked before"


def test_results_count_from_one_and_only_where_they_differ(tmp_path):
    from sweeps.recording import Recording

    recording = Recording(new_sweep(tmp_path, ""))
    for accuracy in (0.5, 0.5, 0.7):
        recording.result_written({"best": accuracy}, "", ())
        recording.start_measured({"start": accuracy}, [], "")
    events = list(recording.log)
    assert [event.step for event in events if isinstance(event, ResultWritten)] == [1, 1, 2]
    assert [event.metrics for event in events if isinstance(event, StartMeasured)] == [{"start": 0.5}]


def test_one_process_sends_at_a_time(tmp_path):
    cursors = Cursors(tmp_path)
    with cursors.alone() as first, Cursors(tmp_path).alone() as second:
        assert (first, second) == (True, False)
    with cursors.alone() as again:
        assert again


def test_a_cursor_that_a_power_cut_spoiled_counts_as_none(tmp_path):
    cursors, cursor = Cursors(tmp_path), Cursor("run", "1", 7, (3,), True, 2, 9, {"step/loss": 3})
    cursors.write("t", cursor)
    assert Cursors(tmp_path).read("t") == cursor
    (tmp_path / "t.json").write_text("")
    assert cursors.read("t") == cursors.read("other") == Cursor()


def test_kinds_are_all_there():
    assert {TrialStarted, SweepEnded} < set(KINDS.values()) <= set(Event.__subclasses__())
