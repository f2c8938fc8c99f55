"""MLflow away at the start, for a while, or emptied: every point arrives, once."""

import contextlib
import socket
from pathlib import Path

import pytest
from in_mlflow import assert_all_there, client_of, points, recorded
from mlflow.entities import ViewType
from mlflow_server import wait_for
from recorded import begin, end, run_of, start, train, trained

from sweeps.events import SweepEnded, TrialEnded
from sweeps.recording import Background
from sweeps.tracking.cursor import SWEEP
from sweeps.tracking.runs import PARENT_TAG, SWEEP_TAG, TRIAL_TAG
from sweeps.tracking.upload import Uploader
from trainer.locations import write_files


@pytest.fixture
def silent():
    """A server that takes connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener


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


@pytest.mark.parametrize("what", ["parent", "all runs", "experiment"])
def test_what_was_deleted_in_the_ui_comes_back_and_nothing_is_there_twice(database, tmp_path, what):
    recording = start(tmp_path, database)
    trained(recording, "t1", "t2")
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
    trained(recording, "t1", "t2")
    for name in ("trial.json", "points/epoch_0001.jsonl", "reports/epoch_0001.json"):
        Path(recording.sweep.trials_folder, "t1", name).write_bytes(bytes(50))
    assert recording.drain() == ""
    assert_all_there(recording, "t2", 5)
    assert client_of(recording).get_run(run_of(recording, "t1")).info.status == "FINISHED"


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
