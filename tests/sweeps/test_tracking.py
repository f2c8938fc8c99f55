"""MLflow away at the start, for a while and for good, or emptied: every point arrives, once."""

import contextlib
import dataclasses
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections import Counter
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType
from mlflow_server import Server, wait_for
from recorded import begin, end, new_sweep, run_of, start, train

from sweeps.events import FilesWritten, SweepEnded, SweepStarted, TrialEnded
from sweeps.recording import Background, Recording
from sweeps.settings import write_files
from sweeps.tracking.__main__ import main as flush_main
from sweeps.tracking.__main__ import send
from sweeps.tracking.cursor import SWEEP, Cursor, Cursors
from sweeps.tracking.runs import PARENT_TAG, SWEEP_TAG, TRIAL_TAG
from sweeps.tracking.upload import Uploader
from trainer.trial_log import read_points, read_report

ROOT = Path(__file__).parents[2]
DATASET = {"name": "shards", "digest": "abc", "source_type": "local", "source": "{}", "profile": "{}"}


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory):
    """Made once: it takes many seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    MlflowClient(f"sqlite:///{path}").search_experiments(max_results=1)
    return path


@pytest.fixture
def database(empty_database, tmp_path):
    """URI of a database of its own."""
    return f"sqlite:///{shutil.copy(empty_database, tmp_path / 'mlflow.db')}"


@pytest.fixture
def server(tmp_path, empty_database):
    (tmp_path / "server").mkdir()
    shutil.copy(empty_database, tmp_path / "server/server.db")
    server = Server(tmp_path / "server")
    yield server
    server.kill()


@pytest.fixture
def silent():
    """A server that takes connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener


def client_of(recording):
    return MlflowClient(recording.sweep.tracking_uri)


def points(client, run):
    return sorted(
        (point.key, point.step, point.value, point.timestamp)
        for name in client.get_run(run).data.metrics
        for point in client.get_metric_history(run, name)
    )


def recorded(recording, key):
    folder = f"{recording.sweep.trials_folder}/{key}"
    epochs = range(1, 1 + len(list(Path(folder, "points").iterdir())))
    told = [point for epoch in epochs for point in read_points(folder, epoch)]
    told += [report for epoch in epochs if (report := read_report(folder, epoch))]
    return sorted(
        (name, point["step"], value, point["time"]) for point in told for name, value in point["metrics"].items()
    )


def assert_all_there(recording, key, last):
    client, run = client_of(recording), run_of(recording, key)
    there = points(client, run)
    assert there == recorded(recording, key)
    wanted = [("step/loss", step, 1 / step) for step in range(1, last + 1)]
    assert [point[:3] for point in there if point[0] == "step/loss"] == wanted
    return client.get_run(run)


def tracking(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "sweeps.tracking", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_settings_of_a_penalty_are_parameters_by_the_names_of_the_search(database, tmp_path):
    recording = start(tmp_path / "runs", database)
    for key, own in (("t1", {"error": 0.5}), ("t2", {})):
        begin(recording, key, regularizer="psnr_hvs", penalty_settings=own).configured(
            {"regularizer": "psnr_hvs", "weight": 0.5, "penalty_settings": own}
        )
    assert recording.drain() == ""
    first, second = (client_of(recording).get_run(run_of(recording, key)).data.params for key in ("t1", "t2"))
    assert first["psnr_hvs.error"] == "0.5"
    assert first.keys() - second.keys() == {"psnr_hvs.error"}
    assert "penalty_settings" not in first


@pytest.mark.slow
def test_a_server_that_comes_late_goes_and_comes_back_has_every_point_once(server, tmp_path, caplog):
    with start(tmp_path / "runs", server.uri) as recording:
        log = begin(recording, "t1")
        train(log, 1, 600)
        wait_for(lambda: "MLflow does not answer" in caplog.text)
        assert run_of(recording, "t1") == ""
        server.start()
        wait_for(lambda: "MLflow answers again" in caplog.text)
        train(log, 601, 700)  # a trial that trains: nothing but its own folder says so
        wait_for(
            lambda: run_of(recording, "t1") and points(client_of(recording), run_of(recording, "t1"))[-1][1] == 700
        )
        assert_all_there(recording, "t1", 700)

        server.kill()
        train(log, 701, 1400)
        log.keep("gallery.png", b"heatmaps")
        end(recording, "t1", checkpoint="/checkpoints/t1")
        begin(recording, "t2", "none", regularizer="none")
        wait_for(lambda: caplog.text.count("MLflow does not answer") == 2)
        files = {"ranking.txt": "the table", "figures/a.png": bytes(range(256))}
        write_files(recording.sweep.folder, files)
        recording.result_written({"best/val/accuracy": 0.9}, "# Result", tuple(files))
        assert "lacks 1402 values and 3 events" in recording.queued()
        server.start()
    assert recording.queued() == ""
    run = assert_all_there(recording, "t1", 1400)
    events = list(recording.log)
    (ended,) = (event.time for event in events if isinstance(event, TrialEnded))
    assert (run.info.run_name, run.info.status, run.info.end_time) == ("l2 w=0.5", "FINISHED", ended)
    assert run.data.params == {"regularizer": "l2", "weight": "0.5", "strength": "0.25", "workers": "1", "digest": "d"}
    client = client_of(recording)
    parent = client.get_run(run_of(recording, SWEEP))
    tags = {"state": "finished", "checkpoint": "/checkpoints/t1", TRIAL_TAG: "t1", PARENT_TAG: parent.info.run_id}
    assert tags.items() <= run.data.tags.items()
    assert Path(client.download_artifacts(run.info.run_id, "gallery.png", str(tmp_path))).read_bytes() == b"heatmaps"
    assert (parent.info.status, parent.data.tags[SWEEP_TAG], parent.data.params) == ("FINISHED", "s", {"epochs": "2"})
    assert parent.data.metrics == {"best/val/accuracy": 0.9}
    there = Path(client.download_artifacts(parent.info.run_id, "", str(tmp_path)))
    assert (there / "ranking.txt").read_text() == "the table"
    assert (there / "figures/a.png").read_bytes() == files["figures/a.png"]
    assert parent.data.tags["mlflow.note.content"] == "# Result"
    silenced = client.get_run(run_of(recording, "t2"))  # the sweep ended before it
    assert (silenced.info.status, silenced.data.tags["state"]) == ("KILLED", "interrupted")
    assert len(client.search_runs([parent.info.experiment_id])) == 3


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


@pytest.mark.parametrize("what", ["parent", "all runs", "experiment"])
def test_what_was_deleted_in_the_ui_comes_back_and_nothing_is_there_twice(database, tmp_path, what):
    recording = start(tmp_path, database)
    for trial in ("t1", "t2"):
        train(begin(recording, trial, trial), 1, 5)
        end(recording, trial)
    assert recording.drain() == ""
    client, parent = client_of(recording), run_of(recording)
    experiment = client.get_run(parent).info.experiment_id
    deleted = {"parent": [parent], "all runs": [run_of(recording, "t1"), run_of(recording, "t2"), parent]}
    for run in deleted.get(what, []):
        client.delete_run(run)
    if what == "experiment":
        client.delete_experiment(experiment)
    train(begin(recording, "t3", "t3"), 1, 5)
    assert recording.drain() == ""
    assert recording.queued() == ""
    assert run_of(recording) == parent
    found = client.search_runs([experiment], run_view_type=ViewType.ALL)
    assert sorted(run.info.run_name for run in found) == ["s", "t1", "t2", "t3"]
    assert {run.info.lifecycle_stage for run in found} == {"active"}
    for trial in ("t1", "t2", "t3"):
        assert_all_there(recording, trial, 5)


def test_a_file_that_a_disk_spoiled_stops_no_other_from_being_sent(database, tmp_path):
    recording = start(tmp_path, database)
    for trial in ("t1", "t2"):
        train(begin(recording, trial, trial), 1, 5)
        end(recording, trial)
    for name in ("trial.json", "points/epoch_0001.jsonl", "reports/epoch_0001.json"):
        Path(recording.sweep.trials_folder, "t1", name).write_bytes(bytes(50))
    assert recording.drain() == ""
    assert_all_there(recording, "t2", 5)
    assert client_of(recording).get_run(run_of(recording, "t1")).info.status == "FINISHED"


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


def test_nothing_waits_for_a_server_that_never_answers(silent, tmp_path):
    recording = start(tmp_path / "runs", f"http://127.0.0.1:{silent.getsockname()[1]}")
    background = Background(recording.uploader())
    background.start()
    log = begin(recording, "t1")
    train(log, 1, 10)
    connection, _ = silent.accept()
    with connection:
        assert connection.recv(1)  # the question has been asked and will not be answered
        for epoch in range(1, 200):
            train(log, 10 * epoch + 1, 10 * epoch + 10)
        end(recording, "t1")
        assert background.is_alive()
        assert not background.uploader.refused
        connection.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while connection.recv(4096):
                pass
            raise AssertionError("the question was given up, so something may have waited for it")
    assert "lacks 4200 values and 3 events" in recording.queued()  # of 2,000 steps and 200 epochs
    background.ended.set()


def test_a_run_that_mlflow_refuses_keeps_no_other_from_its_points(database, tmp_path):
    recording = start(tmp_path, database)
    logs = [begin(recording, trial, trial) for trial in ("t1", "t2")]
    assert recording.drain() == ""
    client_of(recording).delete_run(run_of(recording, "t1"))
    for log in logs:
        train(log, 1, 5)
    uploader = recording.uploader()
    assert uploader.send()
    assert list(uploader.refused) == ["t1"]
    assert_all_there(recording, "t2", 5)
    for trial in ("t1", "t2"):
        end(recording, trial)
    uploader = recording.uploader()
    assert uploader.send()
    assert list(uploader.refused) == ["t1"]
    assert client_of(recording).get_run(run_of(recording, "t2")).info.status == "FINISHED"
    assert "lacks 11 values and 1 events" in recording.queued()


def test_what_a_sweep_starts_from_is_told_at_once_and_once(database, tmp_path):
    recording = start(tmp_path, database)
    begun = ({"start/accuracy": 0.1}, ["At chance.", "One step."], "the start")
    recording.start_measured(*begun)
    assert recording.drain() == ""
    client, run_id = client_of(recording), run_of(recording, SWEEP)
    run = client.get_run(run_id)
    assert run.data.metrics == {"start/accuracy": 0.1}
    assert run.data.tags["warnings"] == "At chance.\nOne step."
    assert run.data.tags["mlflow.note.content"] == "the start"
    for accuracy in (0.9, 0.9, 0.8):  # the sweep ends, is resumed, and then extended
        recording.result_written({"best/val/accuracy": accuracy}, f"the result {accuracy}", ())
        recording.start_measured(*begun)
    assert recording.drain() == ""
    run = client.get_run(run_id)
    assert run.data.metrics == {"start/accuracy": 0.1, "best/val/accuracy": 0.8}
    assert run.data.tags["mlflow.note.content"] == "the result 0.8"
    steps = [(point[0], point[1], point[2]) for point in points(client, run_id)]
    assert set(steps) == {
        ("start/accuracy", 0, 0.1), ("best/val/accuracy", 1, 0.9), ("best/val/accuracy", 2, 0.8)
    }  # fmt: skip


def test_points_within_an_epoch_arrive_while_it_lasts(database, tmp_path):
    recording = start(tmp_path, database)
    log = begin(recording, "t1")
    for step in range(1, 6):
        log.record({"step/loss": 1 / step}, step)
    log.flush()
    uploader = recording.uploader()
    uploader.send()
    run = run_of(recording, "t1")
    assert [point[1] for point in points(client_of(recording), run)] == [1, 2, 3, 4, 5]
    log.record({"step/loss": 1 / 6}, 6)
    log.flush()
    uploader.send()
    assert [point[1] for point in points(client_of(recording), run)] == [1, 2, 3, 4, 5, 6]
    train(log, 7, 9)
    uploader.send()
    assert points(client_of(recording), run) == recorded(recording, "t1")


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
        command = [sys.executable, "-c", TRAIN, str(storage), database, str(steps), str(Path(__file__).parent)]
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


def test_a_trial_that_has_ended_is_not_looked_at_again(database, tmp_path, monkeypatch):
    recording = start(tmp_path, database)
    for trial in ("t1", "t2"):
        train(begin(recording, trial, trial), 1, 3)
    end(recording, "t1")
    uploader = recording.uploader()
    uploader.send()
    looked, send_trial = [], Uploader._send_trial
    monkeypatch.setattr(Uploader, "_send_trial", lambda *given: looked.append(given[2]) or send_trial(*given))
    uploader.send()
    assert looked == ["t2"]
    uploader.send(look=False)  # a moment later, and nothing has happened
    assert looked == ["t2"]
    recording.append(SweepEnded(status="KILLED"))
    uploader.send(look=False)
    assert looked == ["t2", "t2"]
