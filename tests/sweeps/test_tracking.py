"""MLflow away at the start, for a while and for good: every point arrives, once."""

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow_server import Server, wait_for

from sweeps.spool import SWEEP, Sent, Spool
from sweeps.tracking import PARENT_TAG, SWEEP_TAG, TRIAL_TAG, start_sweep
from sweeps.tracking.delivery import Delivery

ROOT = Path(__file__).parents[2]
PARAMS = {"regularizer": "l2", "weight": 0.5}
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


def start(uri, tmp_path, name="s"):
    folder = tmp_path / "runs" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.json").write_text(json.dumps({"tracking_uri": uri}))
    return start_sweep(uri, name, {"epochs": 2}, tmp_path / "runs")


def begin(tracking, trial_id, name, params):
    """Begin the run of a trial."""
    spool = Spool(tracking.folder, trial_id)
    spool.begin(name, {}, params)
    return spool


def train(spool, first, last):
    """Steps as `fit` records them; what MLflow should have of them."""
    for step in range(first, last + 1):
        spool.record({"step/loss": 1 / step, "step/penalty": 2 / step}, step)
    spool.record({"val/accuracy": 1 - 1 / last}, last)
    spool.flush()


def points(client, run):
    return sorted(
        (point.key, point.step, point.value, point.timestamp)
        for name in client.get_run(run).data.metrics
        for point in client.get_metric_history(run, name)
    )


def recorded(tracking, key):
    return sorted(
        (name, line["step"], value, line["time"])
        for line, _ in Spool(tracking.folder, key).lines()
        for name, value in line.get("metrics", {}).items()
    )


def assert_all_there(tracking, key, last):
    client, run = tracking.client, tracking.run_of(key)
    there = points(client, run)
    assert there == recorded(tracking, key)
    wanted = [("step/loss", step, 1 / step) for step in range(1, last + 1)]
    assert [point[:3] for point in there if point[0] == "step/loss"] == wanted
    return client.get_run(run)


def flush(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "sweeps.tracking", "flush", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_a_server_that_comes_late_goes_and_comes_back_has_every_point_once(server, tmp_path, capsys):
    with start(server.uri, tmp_path) as tracking:
        spool = begin(tracking, "t1", "l2 w=0.5", PARAMS)
        train(spool, 1, 600)
        wait_for(lambda: "MLflow is away" in capsys.readouterr().out)
        assert tracking.run_of("t1") == ""
        server.start()
        train(spool, 601, 700)
        wait_for(lambda: "MLflow is back" in capsys.readouterr().out)
        wait_for(lambda: not tracking.unheard())
        assert_all_there(tracking, "t1", 700)

        server.kill()
        train(spool, 701, 1400)
        tracking.end_trial("t1", "finished", {"checkpoint": "/checkpoints/t1"})
        begin(tracking, "t2", "none", {"regularizer": "none"})
        wait_for(lambda: "MLflow is away" in capsys.readouterr().out)
        files = {"ranking.txt": "the table", "figures/a.png": bytes(range(256))}
        tracking.log_origin({"mlflow.user": "me"}, DATASET, {"environment.txt": "torch"})
        tracking.log_result({"best/val/accuracy": 0.9}, "# Result", files)
        assert "points of 3 runs wait" in tracking.unheard()
        server.start()
    assert tracking.unheard() == ""
    run = assert_all_there(tracking, "t1", 1400)
    ended = Spool(tracking.folder, "t1").state()["time"]
    assert (run.info.run_name, run.info.status, run.info.end_time) == ("l2 w=0.5", "FINISHED", ended)
    assert run.data.params == {"regularizer": "l2", "weight": "0.5"}
    parent = tracking.client.get_run(tracking.run_of(SWEEP))
    tags = {"state": "finished", "checkpoint": "/checkpoints/t1", TRIAL_TAG: "t1", PARENT_TAG: parent.info.run_id}
    assert tags.items() <= run.data.tags.items()
    assert (parent.info.status, parent.data.tags[SWEEP_TAG], parent.data.params) == ("FINISHED", "s", {"epochs": "2"})
    assert parent.data.metrics == {"best/val/accuracy": 0.9}
    there = Path(tracking.client.download_artifacts(parent.info.run_id, "", str(tmp_path)))
    assert (there / "ranking.txt").read_text() == "the table"
    assert (there / "figures/a.png").read_bytes() == files["figures/a.png"]
    assert (there / "environment.txt").read_text() == "torch"
    tags = {"mlflow.user": "me", "mlflow.note.content": "# Result"}
    assert tags.items() <= parent.data.tags.items()
    (dataset,) = parent.inputs.dataset_inputs
    assert {key: getattr(dataset.dataset, key) for key in DATASET} == DATASET
    silenced = tracking.client.get_run(tracking.run_of("t2"))  # its process went without a word
    assert silenced.info.status == "KILLED"
    assert len(tracking.client.search_runs([parent.info.experiment_id])) == 3


@pytest.mark.slow
def test_away_for_good_then_flushed_by_two_processes_at_once_and_again(server, database, tmp_path):
    with start(server.uri, tmp_path) as tracking:
        for trial in ("t1", "t2"):
            train(begin(tracking, trial, f"name of {trial}", PARAMS), 1, 2500)
    message = tracking.unheard()
    assert f"{2 * 5001} points of 3 runs wait" in message
    assert message.endswith(f"-m sweeps.tracking flush --name s --storage {tmp_path}/runs")
    status, out, err = flush("--storage", tmp_path / "runs", "--name", "s")
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
        ["s: sent 0 points of s", "s: sent 5001 points of name of t1", "s: sent 5001 points of name of t2",
         "s: nothing waits"]
    )  # fmt: skip
    for trial in ("t1", "t2"):
        assert_all_there(tracking, trial, 2500)
    assert tracking.unheard() == ""

    # Sent twice: what was marked as sent is forgotten, as by a kill between a batch and its mark.
    spool = Spool(tracking.folder, "t1")
    end = next(end for line, end in spool.lines() if "begin" in line)
    spool.mark(Sent(tracking.run_of("t1"), spool.sent().experiment, end))
    status, out, _ = flush("--storage", tmp_path / "runs")
    assert (status, out) == (0, "s: sent 5001 points of t1\n")
    assert_all_there(tracking, "t1", 2500)

    # A second MLflow gets everything anew.
    spool.record({"step/loss": 1 / 2501}, 2501)
    spool.flush()
    status, out, _ = flush("--storage", tmp_path / "runs", "--tracking-uri", database)
    assert status == 0
    assert "sent 5002 points of name of t1" in out
    tracking.uri = database
    assert_all_there(tracking, "t1", 2501)
    assert_all_there(tracking, "t2", 2500)


@pytest.mark.slow
def test_sweeps_that_need_a_new_database_at_once_all_get_it(tmp_path):
    uri = f"sqlite:///{tmp_path}/new.db"
    names = [f"s{number}" for number in range(4)]
    for name in names:
        train(begin(start(uri, tmp_path, name), f"t-{name}", name, PARAMS), 1, 3)
    command = [sys.executable, "-m", "sweeps.tracking", "flush", "--storage", str(tmp_path / "runs"), "--name"]
    processes = [subprocess.Popen([*command, name], cwd=ROOT, stderr=subprocess.PIPE, text=True) for name in names]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == 4 * [0], errors
    for name in names:
        assert_all_there(start(uri, tmp_path, name), f"t-{name}", 3)


def test_flush_refuses_unknown_sweeps(tmp_path):
    start("sqlite:///x.db", tmp_path)
    status, _, err = flush("--storage", tmp_path / "runs", "--name", "other")
    assert (status, err) == (2, f"error: no sweep 'other' under {tmp_path}/runs; there is s\n")


def test_nothing_waits_for_a_server_that_never_answers(silent, tmp_path):
    tracking = start(f"http://127.0.0.1:{silent.getsockname()[1]}", tmp_path)
    tracking.open()
    spool = begin(tracking, "t1", "l2", PARAMS)
    train(spool, 1, 10)
    connection, _ = silent.accept()
    with connection:
        assert connection.recv(1)  # the question has been asked and will not be answered
        for epoch in range(1, 200):
            train(spool, 10 * epoch + 1, 10 * epoch + 10)
        tracking.end_trial("t1", "finished", {})
        courier = tracking._courier
        assert courier.is_alive()
        assert not courier.delivery.refused
        connection.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while connection.recv(4096):
                pass
            raise AssertionError("the question was given up, so something may have waited for it")
    assert "4200 points of 2 runs wait" in tracking.unheard()  # of 2,000 steps and 200 epochs
    courier.ended.set()


def test_a_run_that_mlflow_refuses_keeps_no_other_from_its_points(database, tmp_path):
    tracking = start(database, tmp_path)
    spools = [begin(tracking, trial, trial, PARAMS) for trial in ("t1", "t2")]
    assert tracking.drain() == ""
    tracking.client.delete_run(tracking.run_of("t1"))
    for spool in spools:
        train(spool, 1, 5)
    delivery = Delivery(tracking.folder, tracking.uri)
    assert delivery.send()
    assert list(delivery.refused) == ["t1"]
    assert_all_there(tracking, "t2", 5)
    assert "11 points of 1 runs wait" in tracking.unheard()


def test_what_a_sweep_starts_from_is_told_at_once_and_once(database, tmp_path):
    tracking = start(database, tmp_path)
    begun = ({"start/accuracy": 0.1}, ["At chance.", "One step."], "the start")
    tracking.log_start(*begun)
    assert tracking.drain() == ""
    run = tracking.client.get_run(tracking.run_of(SWEEP))
    assert run.data.metrics == {"start/accuracy": 0.1}
    assert run.data.tags["warnings"] == "At chance.\nOne step."
    assert run.data.tags["mlflow.note.content"] == "the start"
    for _ in range(2):  # the sweep ends, and is resumed
        tracking.log_result({"best/val/accuracy": 0.9}, "the result", {})
        tracking.log_start(*begun)
    assert tracking.drain() == ""
    run = tracking.client.get_run(run.info.run_id)
    assert run.data.metrics == {"start/accuracy": 0.1, "best/val/accuracy": 0.9}
    assert run.data.tags["mlflow.note.content"] == "the result"
    assert len(points(tracking.client, run.info.run_id)) == 2


def test_a_trial_whose_spool_is_lost_adds_only_later_steps(database, tmp_path):
    tracking = start(database, tmp_path)
    train(begin(tracking, "t1", "l2", PARAMS), 1, 30)
    assert tracking.drain() == ""
    run = tracking.run_of("t1")
    before = points(tracking.client, run)
    tracking.folder.rename(tmp_path / "lost")
    tracking = start(tracking.uri, tmp_path)
    spool = begin(tracking, "t1", "l2", PARAMS)
    train(spool, 21, 40)  # from its checkpoint of step 20
    assert tracking.drain() == ""
    assert tracking.run_of("t1") == run
    there = points(tracking.client, run)
    assert set(before) < set(there)
    assert [step for name, step, *_ in there if name == "step/loss"] == list(range(1, 41))
    assert spool.sent().known == {"step/loss": 30, "step/penalty": 30, "val/accuracy": 30}


TRAIN = """
import sys, time
from pathlib import Path
from sweeps.spool import Spool
from sweeps.tracking import start_sweep
storage, uri, steps = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
checkpoint = storage / "checkpoint"
done = int(checkpoint.read_text()) if checkpoint.exists() else 0
tracking = start_sweep(uri, "s", {}, storage)
with tracking:
    spool = Spool(tracking.folder, "t1")
    spool.begin("l2", {}, {"weight": 1})
    for step in range(done + 1, steps + 1):
        spool.record({"step/loss": 1 / step, "step/penalty": 2 / step}, step)
        if step % 10 == 0:
            spool.flush()
            print(step, bool(tracking.run_of("t1")), flush=True)
            partial = checkpoint.with_suffix(".partial")
            partial.write_text(str(step))
            partial.replace(checkpoint)
            time.sleep(0.01)
    tracking.end_trial("t1", "finished", {})
"""


@pytest.mark.slow
def test_killed_while_it_trains_and_sends_no_step_is_missing_or_doubled(database, tmp_path):
    storage = tmp_path / "runs"
    storage.mkdir()

    def child(steps):
        command = [sys.executable, "-c", TRAIN, str(storage), database, str(steps)]
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
    tracking = start(database, tmp_path)
    tracking.end("FINISHED")
    status, _, err = flush("--storage", storage)
    assert status == 0, err
    run = assert_all_there(tracking, "t1", max(last, recorded(tracking, "t1")[-1][1]))
    assert run.info.status == "FINISHED"
    assert len(tracking.client.search_runs([run.info.experiment_id])) == 2


def test_what_mlflow_has_whole_is_not_read_again(tmp_path, monkeypatch):
    for number in range(20):
        spool = Spool(tmp_path, f"t{number}")
        spool.begin("t", {}, {})
        spool.mark(Sent("run", "1", spool.path.stat().st_size))
    delivery = Delivery(tmp_path, "")
    assert delivery.waiting() == []
    read, sent = [], Spool.sent
    monkeypatch.setattr(Spool, "sent", lambda spool: read.append(spool.key) or sent(spool))
    assert delivery.waiting() == []
    assert read == []
    Spool(tmp_path, "t7").end("FINISHED", {})
    assert [spool.key for spool in delivery.waiting()] == ["t7"]
    assert read == ["t7"]
