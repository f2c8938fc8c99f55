"""`python -m sweeps.tracking`: everything arrives once, whoever sends it, and MLflow is rebuilt from the storage."""

import contextlib
import dataclasses
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from pathlib import Path

import pytest
from in_mlflow import assert_all_there, client_of, points
from mlflow import MlflowClient
from recorded import begin, end, new_sweep, start, train

from sweeps.events import FilesWritten, SweepStarted
from sweeps.recording import Recording
from sweeps.tracking.__main__ import main as flush_main
from sweeps.tracking.__main__ import send
from sweeps.tracking.cursor import SWEEP, Cursor, Cursors
from trainer.locations import write_files

ROOT = Path(__file__).parents[3]
SWEEPS = Path(__file__).parents[1]
DATASET = {"name": "shards", "digest": "abc", "source_type": "local", "source": "{}", "profile": "{}"}


def tracking(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "sweeps.tracking", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_away_for_good_then_flushed_by_two_processes_at_once_and_again(server, database, tmp_path):
    with start(tmp_path / "runs", server.uri) as recording:
        logs = [begin(recording, trial, f"name of {trial}") for trial in ("t1", "t2")]
        for log in logs:
            train(log, 1, 2500)
    message = recording.queued()
    assert f"lacks {2 * 5001} values and 4 events" in message
    assert message.endswith(f" flush --name s --storage {tmp_path}/runs")
    status, out, err = tracking("flush", "--storage", tmp_path / "runs", "--name", "s")
    assert (status, out) == (2, "")
    assert err.startswith("error: s: MLflow at http")
    assert err.count("\n") == 1

    server.start()
    command = [sys.executable, "-m", "sweeps.tracking", "flush", "--storage", str(tmp_path / "runs")]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outs = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    lines = Counter("".join(outs).splitlines())
    assert lines == Counter(
        ["s: sent 0 values of s", "s: sent 5001 values of name of t1", "s: sent 5001 values of name of t2",
         "s: MLflow has everything"]
    )  # fmt: skip
    for trial in ("t1", "t2"):
        assert_all_there(recording, trial, 2500)
    assert recording.queued() == ""

    # Sent twice: what was marked as sent is forgotten, as by a kill between a batch and its mark.
    cursors = recording.uploader().cursors
    cursors.write("t1", Cursor(cursors.read("t1").run))
    cursors.write(SWEEP, dataclasses.replace(cursors.read(SWEEP), offset=0))
    status, out, _ = tracking("flush", "--storage", tmp_path / "runs")
    assert status == 0
    assert "s: sent 5001 values of name of t1\n" in out
    assert_all_there(recording, "t1", 2500)

    # A second MLflow gets everything anew.
    status, out, _ = tracking("flush", "--storage", tmp_path / "runs", "--tracking-uri", database)
    assert status == 0
    assert "sent 5001 values of name of t2" in out
    recording = Recording(dataclasses.replace(recording.sweep, tracking_uri=database))
    for trial in ("t1", "t2"):
        assert_all_there(recording, trial, 2500)


def content(uri):
    """All that MLflow has, but for the ids that it gives."""
    path = Path(uri.removeprefix("sqlite:///"))
    client = MlflowClient(f"sqlite:///{shutil.copy(path, path.with_name(f'{uuid.uuid4()}.db'))}")  # no cache knows it
    (experiment,) = (found for found in client.search_experiments() if found.name != "Default")
    runs = {run.info.run_id: run for run in client.search_runs([experiment.experiment_id])}
    names = {key: run.info.run_name for key, run in runs.items()}
    return {
        run.info.run_name: (
            run.info.status, run.info.start_time, run.info.end_time, run.data.params,
            {name: names.get(value, value) for name, value in run.data.tags.items()},
            points(client, key), [one.dataset.digest for one in run.inputs.dataset_inputs],
            sorted(file.path for file in client.list_artifacts(key)),
        )
        for key, run in runs.items()
    }  # fmt: skip


def test_mlflow_is_rebuilt_from_the_storage(database, empty_database, tmp_path):
    sweep = new_sweep(tmp_path, database)
    write_files(sweep.folder, {"environment.txt": "torch", "report.html": "<p>"})
    with Recording(sweep) as recording:
        origin = {"tags": {"mlflow.user": "me"}, "dataset": DATASET, "files": ("environment.txt",)}
        recording.append(SweepStarted(name="s", params={"epochs": "2"}, **origin))
        recording.start_measured({"start/accuracy": 0.1}, ["At chance."], "the start")
        log = begin(recording, "t1")
        train(log, 1, 30)
        log.keep("gallery.png", b"png")
        end(recording, "t1", checkpoint="there")
        train(begin(recording, "t2", "l2 w=7"), 1, 20)
        end(recording, "t2", epoch=1)
        end(recording, begin(recording, "t3", "tv w=1").folder.rpartition("/")[2], epoch=0, error="broken")
        recording.result_written({"best/val/accuracy": 0.9}, "the result", ())
        recording.append(FilesWritten(files=("report.html",)))
        begin(recording, "resume-t1", "l2 resumed", resumed_from="t1", start="there")
    assert recording.queued() == ""
    before = content(database)
    assert {name: run[0] for name, run in before.items()} == {
        "s": "FINISHED", "l2 w=0.5": "FINISHED", "l2 w=7": "KILLED", "tv w=1": "FAILED", "l2 resumed": "KILLED"
    }  # fmt: skip
    assert before["l2 resumed"][4]["resumed_from"] == "l2 w=0.5"  # by the id of its run
    assert before["s"][7] == ["environment.txt", "report.html"]
    assert len(before["l2 w=0.5"][5]) == 61

    shutil.copy(empty_database, tmp_path / "mlflow.db")
    shutil.rmtree(tmp_path / "mlartifacts")
    shutil.rmtree(tmp_path / "s/mlflow")
    status, _, err = tracking("rebuild", "--storage", tmp_path, "--name", "s")
    assert (status, err) == (0, "")
    assert content(database) == before
    status, out, err = tracking("rebuild", "--storage", tmp_path)  # into one that has it all
    assert (status, err) == (0, "")
    assert "sent 61 values of l2 w=0.5" in out
    assert content(database) == before


def test_a_sweep_is_sent_where_it_began_whatever_the_environment_says(database, tmp_path, monkeypatch, capsys):
    recording = start(tmp_path, database)
    train(begin(recording, "t1"), 1, 5)
    end(recording, "t1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    assert flush_main(["--storage", str(tmp_path)]) == 0
    assert not (tmp_path / "other.db").exists()
    assert "sent 11 values of l2 w=0.5\n" in capsys.readouterr().out
    assert flush_main(["rebuild", "--storage", str(tmp_path), "--tracking-uri", f"sqlite:///{tmp_path}/other.db"]) == 0
    assert (tmp_path / "other.db").exists()


def test_a_rebuild_begins_when_no_other_process_sends_any_more(database, tmp_path, monkeypatch, capsys):
    recording = start(tmp_path, database)
    train(begin(recording, "t1"), 1, 5)
    end(recording, "t1")
    assert recording.drain() == ""
    sent, alone = recording.uploader().cursors.read(SWEEP), Cursors.alone

    @contextlib.contextmanager
    def after_another(cursors, patience=0):
        cursors.write(SWEEP, sent)  # the last thing that the driver did while this process waited for it
        with alone(cursors, patience) as able:
            yield able

    monkeypatch.setattr(Cursors, "alone", after_another)
    assert send(str(tmp_path), "s", None, again=True)
    assert "s: sent 11 values of l2 w=0.5\n" in capsys.readouterr().out


@pytest.mark.slow
def test_sweeps_that_need_a_new_database_at_once_all_get_it(tmp_path):
    uri = f"sqlite:///{tmp_path}/new.db"
    recordings = {name: start(tmp_path / "runs", uri, name) for name in (f"s{number}" for number in range(4))}
    for name, recording in recordings.items():
        train(begin(recording, f"t-{name}", name), 1, 3)
    command = [sys.executable, "-m", "sweeps.tracking", "flush", "--storage", str(tmp_path / "runs"), "--name"]
    processes = [subprocess.Popen([*command, name], cwd=ROOT, stderr=subprocess.PIPE, text=True) for name in recordings]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == 4 * [0], errors
    for name, recording in recordings.items():
        assert_all_there(recording, f"t-{name}", 3)


def test_flush_refuses_unknown_sweeps(tmp_path):
    start(tmp_path / "runs", "sqlite:///x.db")
    status, _, err = tracking("flush", "--storage", tmp_path / "runs", "--name", "other")
    assert (status, err) == (2, f"error: no sweep 'other' under {tmp_path}/runs; it has s\n")


TRAIN = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[4])
from recorded import begin, end, run_of, start
storage, uri, steps = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
checkpoint = storage / "checkpoint"
done = int(checkpoint.read_text()) if checkpoint.exists() else 0
with start(storage, uri) as recording:
    log = begin(recording, "t1")
    log._begin(done // 10 + 1)
    for step in range(done + 1, steps + 1):
        log.record({"step/loss": 1 / step, "step/penalty": 2 / step}, step)
        if step % 10 == 0:
            log.report({"val/accuracy": 0.5}, step)
            print(step, bool(run_of(recording, "t1")), flush=True)
            partial = checkpoint.with_suffix(".partial")
            partial.write_text(str(step))
            partial.replace(checkpoint)
            time.sleep(0.01)
    end(recording, "t1")
"""


@pytest.mark.slow
def test_killed_while_it_trains_and_sends_no_step_is_missing_or_doubled(database, tmp_path):
    storage = tmp_path / "runs"
    storage.mkdir()

    def child(steps):
        command = [sys.executable, "-c", TRAIN, str(storage), database, str(steps), str(SWEEPS)]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)

    for kill in range(4):
        process = child(10**7)
        next(line for line in process.stdout if "True" in line)  # the run exists: points are being sent
        time.sleep(1 + 0.1 * kill)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        checkpoint = storage / "checkpoint"
        checkpoint.write_text(str(max(0, int(checkpoint.read_text()) - 10 * kill)))
    last = int((storage / "checkpoint").read_text()) + 100
    process = child(last)
    process.communicate()
    assert process.returncode == 0
    status, _, err = tracking("flush", "--storage", storage)
    assert status == 0, err
    recording = Recording(new_sweep(storage, database))
    run = assert_all_there(recording, "t1", last)
    assert run.info.status == "FINISHED"
    assert len(client_of(recording).search_runs([run.info.experiment_id])) == 2


def test_a_sweep_that_cannot_be_read_keeps_no_other_from_being_sent(database, tmp_path, capsys):
    with start(tmp_path / "runs", database, "b"):
        pass
    new_sweep(tmp_path / "runs", database, "a")
    (tmp_path / "runs/a/sweep.yaml").write_text("[")
    assert flush_main(["flush", "--storage", str(tmp_path / "runs")]) == 2
    said = capsys.readouterr()
    assert "b: MLflow has everything" in said.out
    assert said.err.startswith(f"error: {tmp_path}/runs/a/sweep.yaml: is not valid YAML")


def test_rebuild_has_a_help_of_its_own(capsys):
    with pytest.raises(SystemExit):
        flush_main(["rebuild", "--help"])
    said = capsys.readouterr().out
    assert "everything of a sweep again" in said
    assert "still missing" not in said
    assert "default: none" not in said
