"""Faults on real processes; the end is compared, bit for bit, with that of a run nothing happened to."""

import dataclasses
import json
import os
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path

import optuna
import pytest
import torch
from mlflow import MlflowClient
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from ray import cloudpickle
from recorded import run_of
from test_tuning import processes, train_workers

from sweeps.callback import failure_in_words
from sweeps.cluster import ray_cluster
from sweeps.messages import told_to
from sweeps.recording import start_sweep
from sweeps.settings import Sweep
from sweeps.terminal import Terminal
from sweeps.tuning import ERRORS, run_sweep
from trainer.checkpoint_io import load_state
from trainer.config import Trial
from trainer.fit import fit
from trainer.placement import Placement
from trainer.ray_driver import run_trial
from trainer.shards import Sample, encode_jpeg, write_shards
from trainer.trial_log import failure_of, read_points

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test


@pytest.fixture(scope="module")
def trial(digits):
    return Trial(
        data=str(digits), model="resnet8", regularizer="spectreg", weight=0.1, epochs=3, images_per_epoch=320,
        batch_size=16, robust_images=8, pgd_steps=1, augment=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def cluster():
    with ray_cluster(num_cpus=2):
        yield


def train(trial, folder, name, **options):
    return run_trial(trial.to_dict(), placement=Placement(workers=2), storage=str(folder), name=name, **options)


def when(condition, action):
    """Do it once, in a thread, as soon as the condition holds."""

    def watch():
        while not condition():
            time.sleep(0.02)
        action()
        done.append(True)

    done = []
    threading.Thread(target=watch, daemon=True).start()
    return done


def kill_a_worker():
    os.kill(train_workers()[0].pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def undisturbed(cluster, trial, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    result = train(trial, folder, "t")
    assert result.metrics["epoch"] == 3
    return load_state(str(folder / "t/epoch_0003"))


def assert_same_end(folder, undisturbed):
    state = load_state(str(folder / "epoch_0003"))
    assert state["step"] == undisturbed["step"] == 30
    for name, value in undisturbed["model"].items():
        assert torch.equal(value, state["model"][name]), name
    for old, new in zip(undisturbed["optimizer"]["state"].values(), state["optimizer"]["state"].values(), strict=True):
        assert torch.equal(old["momentum_buffer"], new["momentum_buffer"])


@pytest.mark.slow
def test_a_killed_worker_costs_nothing(cluster, trial, tmp_path, undisturbed):
    killed = when((tmp_path / "t/epoch_0001/state.pt.sha256").exists, kill_a_worker)
    assert train(trial, tmp_path, "t").metrics["epoch"] == 3
    assert killed
    assert_same_end(tmp_path / "t", undisturbed)


@pytest.mark.slow
def test_a_trial_trained_on_is_the_longer_trial(cluster, trial, tmp_path, undisturbed):
    train(dataclasses.replace(trial, epochs=2), tmp_path, "short")
    train(trial, tmp_path, "t", start=str(tmp_path / "short/epoch_0002"))
    assert_same_end(tmp_path / "t", undisturbed)


class KillsItsWorker:
    """In place of the actor that says whether to stop: the worker that asks it is killed."""

    class stop_requested:  # noqa: N801  # as an actor's method
        @staticmethod
        def remote():
            time.sleep(1)  # Ray Train keeps the CPUs of a worker that dies before its start has been confirmed
            os.kill(os.getpid(), signal.SIGKILL)  # as the system does when there is no memory left


@pytest.mark.slow
def test_a_worker_that_is_killed_each_time_ends_its_trial_with_advice(cluster, trial, tmp_path):
    with pytest.raises(Exception) as raised:  # noqa: PT011  # whatever Ray calls it
        run_trial(trial.to_dict(), placement=Placement(), storage=str(tmp_path), name="t", switch=KillsItsWorker())
    assert "lower batch_size" in failure_in_words(raised.value)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over(cluster, trial, tmp_path, undisturbed):
    newest = tmp_path / "t/epoch_0002/state.pt"

    def damage():
        content = bytearray(newest.read_bytes())
        content[len(content) // 2] ^= 1  # one bit, which the reader of the file would not notice
        newest.write_bytes(content)
        kill_a_worker()

    killed = when(newest.with_suffix(".pt.sha256").exists, damage)
    assert train(trial, tmp_path, "t").metrics["epoch"] == 3
    assert killed
    assert_same_end(tmp_path / "t", undisturbed)


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_written_ends_no_training(cluster, trial, tmp_path, undisturbed):
    (tmp_path / "t").mkdir()
    (tmp_path / "t/epoch_0002").write_text("in the way")
    result = train(trial, tmp_path, "t")
    assert result.metrics["epoch"] == 3
    assert (tmp_path / "t/epoch_0002").read_text() == "in the way"
    assert_same_end(tmp_path / "t", undisturbed)


@pytest.mark.slow
def test_a_non_retryable_error_ends_its_trial_alone(cluster, trial, tmp_path, capsys):
    from PIL import Image

    for split in ("train", "val"):
        samples = [Sample(f"{n}", encode_jpeg(Image.new("RGB", (8, 8), (n, 0, 0))), n % 2) for n in range(64)]
        write_shards(samples, tmp_path / "tiny", split, ["a", "b"], "test")
    sweep = Sweep(
        name="s", storage=str(tmp_path), tracking_uri=f"sqlite:///{tmp_path}/mlflow.db",
        regularizers=("l2", "ssim", "tv"),
        trial=dataclasses.replace(
            trial, data=str(tmp_path / "tiny"), images_per_epoch=64, epochs=1, batch_size=32,
            regularizer="none", weight=0.0,
        ),
    )  # fmt: skip
    Path(sweep.folder).mkdir()
    recording = start_sweep(sweep, {})
    with told_to(Terminal()):
        rows = {row.regularizer: row for row in run_sweep(sweep, recording, {"l2": 1.0, "ssim": 1.0, "tv": 1e45})}
    assert {name: row.status for name, row in rows.items()} == {
        "none": "finished", "l2": "finished", "ssim": "failed", "tv": "diverged"
    }  # fmt: skip
    run = MlflowClient(sweep.tracking_uri).get_run(run_of(recording, rows["ssim"].trial_id))
    assert (run.info.status, run.data.tags["state"]) == ("FAILED", "failed")
    folder = f"{sweep.folder}/trials/{rows['ssim'].trial_id}"
    assert failure_of(folder).startswith("regularizer 'ssim': ssim needs images of at least 11x11 pixels, got 8x8")
    assert "regularizers/ssim.py" in json.loads(Path(folder, "failure.json").read_text())["trace"]
    assert "ssim w=" in capsys.readouterr().out
    storage = JournalStorage(JournalFileBackend(f"{sweep.folder}/study.journal"))
    states = {t.params["regularizer"]: t.state.name for t in optuna.load_study(study_name="s", storage=storage).trials}
    assert states == {"none": "COMPLETE", "l2": "COMPLETE", "ssim": "FAIL", "tv": "COMPLETE"}
    run = MlflowClient(sweep.tracking_uri).get_run(run_of(recording, rows["tv"].trial_id))
    assert (run.info.status, run.data.tags["state"]) == ("KILLED", "diverged")
    assert rows["tv"].robust_accuracy == 0.0
    assert (
        len(MlflowClient(sweep.tracking_uri).get_metric_history(run_of(recording, rows["tv"].trial_id), "step/loss"))
        == 2
    ), "it was tried again"


@pytest.mark.slow
def test_kills_in_a_sweep_cost_nothing_and_processes_go_on_to_the_next_trial(cluster, trial, tmp_path):
    sweep = Sweep(
        name="s", storage=str(tmp_path), tracking_uri=f"sqlite:///{tmp_path}/mlflow.db", regularizers=("spectreg",),
        trial=dataclasses.replace(trial, regularizer="none"), trials_per_regularizer=2, max_concurrent=1,
        scheduler="none",
    )  # fmt: skip
    recording = start_sweep(sweep, {})

    def saved(number, epoch="*"):
        found = Path(sweep.trials_folder).glob(f"*/epoch_{epoch}/state.pt.sha256")
        return len({path.parents[1] for path in found}) == number

    first = when(lambda: saved(1), kill_a_worker)
    second = when(lambda: saved(2), lambda: os.kill(processes("ImplicitFunc")[0].pid, signal.SIGKILL))
    trained_by = {}
    for number in range(1, 5):
        ended = partial(saved, number, "0003")
        when(ended, lambda number=number: trained_by.update({number: train_workers()[0].pid}))
    rows = run_sweep(sweep, recording, {"spectreg": 1.0})
    assert first
    assert second
    assert [row.status for row in rows] == 4 * ["finished"]
    assert len(trained_by) == 4
    assert len(set(trained_by.values())) == 2, "the worker of the killed process, and one for the three trials after it"
    for row in rows:
        state, whole = load_state(row.checkpoint), []
        fit(Trial(**state["trial"]), lambda report, state, whole=whole: whole.append(state))
        for name, value in whole[-1]["model"].items():
            assert torch.equal(value, state["model"][name]), (row.regularizer, name)
        steps = [
            point.step
            for point in MlflowClient(sweep.tracking_uri).get_metric_history(
                run_of(recording, row.trial_id), "step/loss"
            )
        ]
        assert steps == list(range(1, 61))
        kept = [read_points(f"{sweep.trials_folder}/{row.trial_id}", epoch) for epoch in (1, 2, 3)]
        assert [point["step"] for points in kept for point in points if "step/loss" in point["metrics"]] == steps
    storage = JournalStorage(JournalFileBackend(str(sweep.local_folder / "study.journal")))
    study = optuna.load_study(study_name="s", storage=storage)
    assert [(t.number, t.state.name) for t in study.trials] == [(number, "COMPLETE") for number in range(4)]


@pytest.mark.slow
def test_a_trial_whose_process_is_killed_each_time_is_given_up(cluster, trial, tmp_path):
    sweep = Sweep(
        name="s", storage=str(tmp_path), tracking_uri=f"sqlite:///{tmp_path}/mlflow.db", regularizers=("none",),
        trial=dataclasses.replace(trial, regularizer="none", weight=0.0),
    )  # fmt: skip
    killed, over = set(), threading.Event()

    def kill():
        while not over.wait(0.05):
            if train_workers():
                for process in processes("ImplicitFunc"):
                    killed.add(process.pid)
                    process.kill()

    threading.Thread(target=kill, daemon=True).start()
    (row,) = run_sweep(sweep, start_sweep(sweep, {}), {})
    over.set()
    assert row.status == "failed"
    assert len(killed) == 1 + ERRORS
