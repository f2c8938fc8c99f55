"""What waits for MLflow: each step once in the file, whatever is killed and whoever else writes."""

import base64
import fcntl
import json
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest.mock import ANY

import pytest
from sweeps.spool import Sent, Spool, only_sender, spools

ROOT = Path(__file__).parents[2]


@pytest.fixture
def spool(tmp_path):
    spool = Spool(tmp_path / "spool", "t")
    spool.begin("l2 w=1", {}, {"weight": 1.0})
    return spool


def record(spool, *steps):
    for step in steps:
        spool.record({"step/loss": 1 / step}, step)
    spool.flush()


def steps(spool):
    return [line["step"] for line, _ in spool.lines() if "metrics" in line]


def test_points_keep_order_value_and_their_own_time(spool):
    before = int(time.time() * 1000)
    spool.record({"step/loss": 0.5, "step/penalty": float("inf")}, 1)
    after = int(time.time() * 1000)
    assert steps(spool) == []
    time.sleep(0.01)
    spool.flush()
    assert spool._buffer == []
    (begin, _), (line, end) = spool.lines()
    assert begin == {"begin": "l2 w=1", "time": ANY, "tags": {}, "params": {"weight": "1.0"}}
    assert line["metrics"] == {"step/loss": 0.5, "step/penalty": float("inf")}
    assert before <= line["time"] <= after
    assert end == spool.path.stat().st_size


def test_steps_done_again_by_another_process_are_left_out(spool):
    record(spool, 1, 2, 3)
    spool.record({"val/accuracy": 0.5}, 3)
    spool.flush()
    again = pickle.loads(pickle.dumps(spool))
    fresh = Spool(spool.folder, "t")
    fresh.begin("l2 w=1", {}, {})
    for other in (again, fresh):
        record(other, 2, 3)
        other.record({"val/accuracy": 0.5}, 3)
        other.flush()
    record(fresh, 4)
    record(again, 4, 5)
    record(spool, 5, 6)
    assert steps(spool) == [1, 2, 3, 3, 4, 5, 6]


def test_a_metric_new_at_a_known_step_is_taken(spool):
    record(spool, 1)
    spool.record({"step/loss": 1.0, "train/loss": 2.0}, 1)
    spool.flush()
    assert [line["metrics"] for line, _ in list(spool.lines())[1:]] == [{"step/loss": 1.0}, {"train/loss": 2.0}]
    assert spool.last() == ({"train/loss": 2.0}, 1)


def test_the_half_line_of_a_killed_process_is_cut_off(spool):
    record(spool, 1, 2)
    whole = spool.path.read_bytes()
    spool.path.write_bytes(whole[:-5])
    assert steps(spool) == [1]
    record(Spool(spool.folder, "t"), 1, 2, 3)
    assert steps(spool) == [1, 2, 3]
    assert [json.loads(line) for line in spool.path.read_text().splitlines()]


def test_a_file_that_cannot_be_written_costs_no_point(spool, capsys):
    record(spool, 1)
    aside = spool.folder.rename(spool.folder.with_name("aside"))
    spool.folder.write_text("in the way")
    record(spool, 2)
    assert "cannot be written" in capsys.readouterr().out
    spool.folder.unlink()
    aside.rename(spool.folder)
    record(spool, 3)
    assert steps(spool) == [1, 2, 3]


def test_an_end_is_said_once_until_the_run_goes_on(spool):
    def ends():
        return [line["end"] for line, _ in spool.lines() if "end" in line]

    for _ in range(2):
        Spool(spool.folder, "t").end("KILLED", {"state": "stopped"})
    assert len(ends()) == 1
    spool.begin("l2 w=1", {}, {})
    assert "begin" in spool.state()
    spool.end("KILLED", {"state": "stopped"})
    assert len(ends()) == 2
    spool.end("FINISHED", {"state": "finished"})
    assert ends() == ["KILLED", "KILLED", "FINISHED"]


def test_what_was_sent_no_longer_waits(spool):
    assert spool.waiting()
    spool.mark(Sent("run", "1", spool.path.stat().st_size, {"step/loss": 3}))
    assert not spool.waiting()
    assert (
        Spool(spool.folder, "t").sent() == spool.sent() == Sent("run", "1", spool.path.stat().st_size, {"step/loss": 3})
    )
    record(spool, 1)
    assert spool.waiting()
    spool.path.with_suffix(".sent").write_text("")  # a power cut
    assert spool.sent() == Sent()
    assert [found.key for found in spools(spool.folder)] == ["t"]


def test_one_process_sends_at_a_time(tmp_path):
    with only_sender(tmp_path) as first, only_sender(tmp_path) as second:
        assert (first, second) == (True, False)
    with only_sender(tmp_path) as again:
        assert again


TRAIN = """
import sys, time
from pathlib import Path
from sweeps.spool import Spool
folder, epochs = Path(sys.argv[1]), int(sys.argv[2])
checkpoint = folder / "checkpoint"
done = int(checkpoint.read_text()) if checkpoint.exists() else 0
spool = Spool(folder / "spool", "t")
spool.begin("t", {}, {})
for epoch in range(done, epochs):
    for step in range(epoch * 20 + 1, epoch * 20 + 21):
        spool.record({"step/loss": 1 / step, "step/penalty": 2 / step}, step)
    spool.record({"val/accuracy": epoch / 10}, step)
    spool.flush()
    print(epoch, flush=True)
    time.sleep(0.002)
    partial = checkpoint.with_suffix(".partial")
    partial.write_text(str(epoch + 1))
    partial.replace(checkpoint)
"""


def train(folder, epochs):
    return subprocess.Popen(
        [sys.executable, "-c", TRAIN, str(folder), str(epochs)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


def test_killed_and_continued_from_its_checkpoint_no_step_is_missing_or_doubled(tmp_path):
    draw = random.Random(0)
    for kill in range(8):
        process = train(tmp_path, 10**6)
        for _ in range(3):
            process.stdout.readline()
        time.sleep(draw.random() / 20)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if kill % 2 == 0:  # flushed but without its checkpoint: the way of a kill in between
            checkpoint = tmp_path / "checkpoint"
            checkpoint.write_text(str(int(checkpoint.read_text()) - 1))
    epochs = int((tmp_path / "checkpoint").read_text()) + 3
    train(tmp_path, epochs).communicate()
    lines = [line for line, _ in Spool(tmp_path / "spool", "t").lines() if "metrics" in line]
    found = sorted((name, line["step"], value) for line in lines for name, value in line["metrics"].items())
    every = range(1, 20 * epochs + 1)
    wanted = [("step/loss", step, 1 / step) for step in every] + [("step/penalty", step, 2 / step) for step in every]
    wanted += [("val/accuracy", 20 * epoch + 20, epoch / 10) for epoch in range(epochs)]
    assert found == sorted(wanted)


def test_a_writer_waits_for_another_and_heeds_what_it_wrote(spool):
    with spool.path.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        writer = threading.Thread(target=record, args=(spool, 1, 2))
        writer.start()
        writer.join(0.3)
        assert writer.is_alive()
        other.write(b'{"step": 1, "time": 0, "metrics": {"step/loss": 1.0}}\n')
    writer.join()
    assert steps(spool) == [1, 2]


def test_two_processes_that_train_the_same_trial_write_each_step_once(tmp_path):
    both = [train(tmp_path, 40), train(tmp_path, 40)]
    for process in both:
        process.communicate()
    spool = Spool(tmp_path / "spool", "t")
    losses = [line["step"] for line, _ in spool.lines() if "step/loss" in line.get("metrics", {})]
    assert losses == list(range(1, 801))


def test_what_another_thread_records_while_lines_are_written_is_not_lost(tmp_path):
    class Busy(Spool):
        def append(self, lines):
            self.record({"system/cpu": 1.0}, 7)
            super().append(lines)

    spool = Busy(tmp_path, "t")
    spool.record({"loss": 1.0}, 1)
    spool.flush()
    Spool.append(spool, spool._buffer)
    assert [line["step"] for line, _ in spool.lines()] == [1, 7]


def test_files_come_back_as_they_were(tmp_path):
    spool = Spool(tmp_path, "t")
    spool.attach({"a.txt": "ä", "b.png": bytes(range(256))})
    spool.flush()
    ((line, _),) = spool.lines()
    files = {name: base64.b64decode(content) for name, content in line["files"].items()}
    assert files == {"a.txt": "ä".encode(), "b.png": bytes(range(256))}
