"""What a trial says is in its folder once, whatever is killed, written again or cannot be written for a while."""

import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from trainer import trial_log
from trainer.trial_log import TrialLog, read_points, read_report

ROOT = Path(__file__).parents[2]


def losses(folder, epoch=1):
    return [point["step"] for point in read_points(str(folder), epoch) if "step/loss" in point["metrics"]]


def record(log, *steps):
    for step in steps:
        log.record({"step/loss": 1 / step}, step)
    log.flush()


def test_points_keep_order_value_and_their_own_time(tmp_path):
    log = TrialLog(str(tmp_path), "d")
    before = int(time.time() * 1000)
    log.record({"step/loss": 0.5, "step/penalty": float("inf")}, 1)
    after = int(time.time() * 1000)
    assert read_points(str(tmp_path), 1) == []
    time.sleep(0.01)
    log.record({"step/loss": 0.25}, 2)
    log.flush()
    first, second = read_points(str(tmp_path), 1)
    assert (first["step"], first["metrics"]) == (1, {"step/loss": 0.5, "step/penalty": float("inf")})
    assert before <= first["time"] <= after < second["time"]


def test_an_epoch_done_again_adds_nothing_and_keeps_its_times(tmp_path):
    first = TrialLog(str(tmp_path), "d")
    record(first, 1, 2, 3)
    first.report({"val/accuracy": 0.5}, 3)
    kept = {path: path.read_bytes() for path in tmp_path.rglob("epoch_*")}
    assert len(kept) == 2
    time.sleep(0.005)
    again = TrialLog(str(tmp_path), "d")
    record(again, 1, 2, 3)
    again.report({"val/accuracy": 0.5, "train/images_per_second": 7.0}, 3)
    assert {path: path.read_bytes() for path in tmp_path.rglob("epoch_*")} == kept
    record(again, 4)
    assert losses(tmp_path, 2) == [4]


def test_an_epoch_goes_on_where_a_killed_attempt_was(tmp_path):
    record(TrialLog(str(tmp_path), "d"), 1, 2)
    times = [point["time"] for point in read_points(str(tmp_path), 1)]
    time.sleep(0.005)
    again = TrialLog(str(tmp_path), "d")
    record(again, 1, 2, 3)
    assert losses(tmp_path) == [1, 2, 3]
    assert [point["time"] for point in read_points(str(tmp_path), 1)][:2] == times


def test_another_configuration_replaces_the_report(tmp_path):
    TrialLog(str(tmp_path), "old").report({"val/accuracy": 0.5}, 3)
    TrialLog(str(tmp_path), "new").report({"val/accuracy": 0.7}, 3)
    report = read_report(str(tmp_path), 1)
    assert (report["digest"], report["metrics"], report["step"]) == ("new", {"val/accuracy": 0.7}, 3)
    assert read_report(str(tmp_path), 2) is None


def test_storage_that_cannot_be_written_costs_no_point(tmp_path, caplog):
    folder = tmp_path / "t"
    log = TrialLog(str(folder), "d")
    record(log, 1)
    aside = folder.rename(tmp_path / "aside")
    folder.write_text("in the way")
    record(log, 2)
    log.report({"val/accuracy": 0.5}, 2)
    record(log, 3)
    assert "queued in memory" in caplog.text
    folder.unlink()
    aside.rename(folder)
    log.flush()
    assert (losses(folder, 1), losses(folder, 2)) == ([1, 2], [3])
    assert read_report(str(folder), 1)["metrics"] == {"val/accuracy": 0.5}


def test_a_report_is_there_only_when_all_points_of_its_epoch_are(tmp_path, monkeypatch):
    written, whole_file = [], trial_log.whole_file
    monkeypatch.setattr(
        trial_log, "whole_file", lambda name: written.append(Path(name).parent.name) or whole_file(name)
    )
    log = TrialLog(str(tmp_path), "d")
    log.record({"step/loss": 1.0}, 1)
    log.report({"val/accuracy": 0.5}, 1)
    assert written == ["points", "reports"]


def test_points_of_a_long_epoch_are_written_meanwhile(tmp_path, monkeypatch):
    monkeypatch.setattr(trial_log, "EVERY", 0.01)
    log = TrialLog(str(tmp_path), "d")
    with log.writing():
        log.record({"step/loss": 1.0}, 1)
        deadline = time.monotonic() + 60
        while not losses(tmp_path):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        monkeypatch.setattr(trial_log, "EVERY", 1000)
        log.record({"step/loss": 1.0}, 2)
    assert losses(tmp_path) == [1, 2]


def test_what_threads_record_while_files_are_written_is_not_lost(tmp_path):
    log = TrialLog(str(tmp_path), "d")

    def load():
        for step in range(1, 301):
            log.record({"system/cpu": 1.0}, step)

    thread = threading.Thread(target=load)
    thread.start()
    while thread.is_alive():
        log.flush()
    thread.join()
    log.flush()
    assert [point["step"] for point in read_points(str(tmp_path), 1)] == list(range(1, 301))


TRAIN = """
import sys, time
from pathlib import Path
from trainer.trial_log import TrialLog
folder, epochs = Path(sys.argv[1]), int(sys.argv[2])
checkpoint = folder / "checkpoint"
done = int(checkpoint.read_text()) if checkpoint.exists() else 0
log = TrialLog(str(folder), "d", done + 1)
for epoch in range(done, epochs):
    for step in range(epoch * 20 + 1, epoch * 20 + 21):
        log.record({"step/loss": 1 / step, "step/penalty": 2 / step}, step)
        if step % 7 == 0:
            log.flush()
    log.report({"val/accuracy": epoch / 10}, step)
    print(epoch, flush=True)
    time.sleep(0.002)
    partial = checkpoint.with_suffix(".partial")
    partial.write_text(str(epoch + 1))
    partial.replace(checkpoint)
"""


def train(folder, epochs):
    command = [sys.executable, "-c", TRAIN, str(folder), str(epochs)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_killed_and_continued_from_its_checkpoint_no_step_is_missing_or_doubled(tmp_path):
    draw = random.Random(0)
    for kill in range(5):
        process = train(tmp_path, 10**6)
        for _ in range(3):
            process.stdout.readline()
        time.sleep(draw.random() / 20)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if kill % 2 == 0:  # said, but without its checkpoint: the way of a kill in between
            checkpoint = tmp_path / "checkpoint"
            checkpoint.write_text(str(int(checkpoint.read_text()) - 1))
    epochs = int((tmp_path / "checkpoint").read_text()) + 3
    train(tmp_path, epochs).communicate()
    for epoch in range(epochs):
        points = read_points(str(tmp_path), epoch + 1)
        steps = range(20 * epoch + 1, 20 * epoch + 21)
        assert [(p["step"], p["metrics"]) for p in points] == [
            (step, {"step/loss": 1 / step, "step/penalty": 2 / step}) for step in steps
        ]
        assert read_report(str(tmp_path), epoch + 1)["metrics"] == {"val/accuracy": epoch / 10}


def test_two_processes_that_train_the_same_trial_leave_each_step_once(tmp_path):
    both = [train(tmp_path, 30), train(tmp_path, 30)]  # of a node that was given up and was not gone
    for process in both:
        process.communicate()
    found = [point["step"] for epoch in range(1, 31) for point in read_points(str(tmp_path), epoch)]
    assert found == list(range(1, 601))


@pytest.mark.parametrize("kind", ["points", "reports"])
def test_an_epoch_that_has_not_begun_has_nothing(tmp_path, kind):
    read = {"points": read_points, "reports": read_report}[kind]
    assert not read(str(tmp_path / "nowhere"), 1)
