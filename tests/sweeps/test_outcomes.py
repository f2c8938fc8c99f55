"""How trials end: what a worker really trained, and what MLflow is told; without Ray."""

import io
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
import torch
from mlflow import MlflowClient
from PIL import Image
from ray import cloudpickle

from sweeps.callback import MOST_FAILURES, SweepCallback, failure_in_words, last_failure
from sweeps.outcomes import mismatch, row_of, run_name, status_of, trial_of
from sweeps.proposals import FIXED
from sweeps.search import METRIC, make_scheduler
from sweeps.settings import Sweep
from sweeps.spool import Spool
from sweeps.tracking import start_sweep
from trainer import load, ray_trial
from trainer.cache import ShardCache
from trainer.config import Trial
from trainer.evaluate import gallery

UNITS = {"l2": 2.0}
CONFIG = {"regularizer": "l2", "weight_l2": 0.5, "seed": 3}


@pytest.fixture
def sweep(tmp_path, digits):
    trial = Trial(data=str(digits), model="resnet8", epochs=2, images_per_epoch=48, batch_size=16, robust_images=8)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    return Sweep(name="s", storage=str(tmp_path), tracking_uri=uri, trial=trial, regularizers=("l2",))


def result(sweep, config=CONFIG, **change):
    return {METRIC: 0.9, "epoch": 2.0, "digest": trial_of(sweep, config).digest()} | change


def test_fixed_and_proposed_configurations_ask_for_the_same(sweep):
    trial = trial_of(sweep, CONFIG)
    assert (trial.regularizer, trial.weight, trial.seed) == ("l2", 0.5, 3)
    assert trial_of(sweep, {FIXED: CONFIG}) == trial
    assert trial_of(sweep, {"regularizer": "none", "seed": 0}).weight == 0.0


def test_status(sweep):
    assert status_of(sweep, CONFIG, result(sweep)) == "finished"
    assert status_of(sweep, CONFIG, result(sweep, epoch=1.0)) == "stopped"
    assert status_of(sweep, CONFIG, result(sweep, epoch=1.0, diverged=1.0)) == "diverged"
    assert status_of(sweep, CONFIG, {}) == "failed"
    other = result(sweep, CONFIG | {"weight_l2": 0.6})
    assert status_of(sweep, CONFIG, other) == "failed"
    assert mismatch(sweep, CONFIG, result(sweep)) is None
    assert other["digest"] in mismatch(sweep, CONFIG, other)
    row = row_of(sweep, UNITS, CONFIG, result(sweep), "id", failed=False)
    assert (row.strength, row.status) == (0.25, "finished")
    assert row_of(sweep, UNITS, CONFIG, result(sweep), "id", failed=True).status == "failed"


class Points:
    """A recorder that keeps what it is given."""

    def __init__(self):
        self.losses, self.files, self.load = [], {}, []

    def configured(self, params):
        self.params = params

    def record(self, metrics, step):
        self.losses += [metrics["step/loss"]] if "step/loss" in metrics else []
        self.load += [metrics] if "system/cpu_utilization_percentage" in metrics else []

    def attach(self, files):
        self.files |= files

    def flush(self):
        pass


class Pointer:
    """A checkpoint of Ray's, which is only a place."""

    def __init__(self, path, filesystem):
        self.path = path


@pytest.fixture
def work(sweep, monkeypatch, tmp_path):
    """Run what a worker runs, in this process: its reports and its losses."""

    def _work(config, checkpoint=None):
        reports, points = [], Points()
        storage = SimpleNamespace(experiment_fs_path="/", storage_filesystem=None)
        train = SimpleNamespace(
            get_checkpoint=lambda: Pointer(checkpoint, None) if checkpoint else None,
            get_context=lambda: SimpleNamespace(get_storage=lambda: storage),
            Checkpoint=Pointer,
            report=lambda metrics, *rest, **more: reports.append(metrics),
        )
        monkeypatch.setattr(ray_trial, "train", train)
        monkeypatch.setattr(ray_trial, "get_device", lambda: torch.device("cpu"))
        monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        trial = trial_of(sweep, config)
        ray_trial.train_worker(
            {"trial": trial.to_dict(), "recorder": points, "start": None, "extra": {"strength": 1.0},
             "cache": ShardCache(), "folder": str(tmp_path / trial.digest()), "name": "t", "switch": None}
        )  # fmt: skip
        assert points.params == trial.to_dict() | {"digest": trial.digest()}
        _work.points = points
        return reports, points.losses

    return _work


def test_two_weights_are_two_configurations_and_two_losses(sweep, work):
    light, strong = CONFIG, CONFIG | {"weight_l2": 50.0}
    (light_reports, light_losses), (strong_reports, strong_losses) = work(light), work(strong)
    assert len(light_losses) == len(strong_losses) == 6
    assert all(a != b for a, b in zip(light_losses, strong_losses, strict=True))
    digests = [{report["digest"] for report in reports} for reports in (light_reports, strong_reports)]
    assert digests == [{trial_of(sweep, config).digest()} for config in (light, strong)]
    assert digests[0] != digests[1]
    assert mismatch(sweep, light, light_reports[-1]) is None
    assert mismatch(sweep, light, strong_reports[-1])
    again, losses = work(light)
    assert losses == light_losses
    assert again[-1]["digest"] == light_reports[-1]["digest"]


def test_a_trial_that_had_ended_before_its_driver_could_keep_that_says_it_again(sweep, work):
    reports, _ = work(CONFIG)
    again, losses = work(CONFIG, reports[-1]["checkpoint_folder"])
    assert losses == []
    assert again == reports[-1:]
    assert status_of(sweep, CONFIG, again[-1]) == "finished"
    (last,), losses = work(CONFIG, reports[0]["checkpoint_folder"])
    assert len(losses) == 3  # one epoch of two
    pace = {"train/images_per_second", "train/share_waiting_for_data"}
    assert {key: last[key] for key in last.keys() - pace} == {key: again[0][key] for key in last.keys() - pace}


@pytest.mark.parametrize(
    ("change", "state", "status"),
    [({}, "finished", "FINISHED"), ({"epoch": 1.0}, "stopped", "KILLED"), ({"digest": "other"}, "failed", "FAILED")],
)
def test_mlflow_is_told_how_a_trial_ended_and_what_it_trained(sweep, tmp_path, change, state, status, capsys):
    tracking = start_sweep(sweep.tracking_uri, sweep.name, {}, tmp_path)
    Spool(tracking.folder, "id").begin("l2", {}, {})
    last = result(sweep, checkpoint_path="where") | {"val/accuracy": 0.5} | change
    callback = SweepCallback(sweep, tracking, make_scheduler(sweep), 1, UNITS, "")
    cloudpickle.dumps(callback)
    callback.on_trial_complete(0, [], SimpleNamespace(trial_id="id", config=CONFIG, last_result=last))
    assert tracking.drain() == ""
    told = MlflowClient(sweep.tracking_uri).get_run(tracking.run_of("id"))
    assert told.info.status == status
    assert told.data.tags["state"] == state
    assert told.data.tags["effective_digest"] == last["digest"]
    out = capsys.readouterr().out
    assert state in out
    assert ("its worker trained configuration other" in out) == (state == "failed")


def test_a_lost_node_gives_a_try_more_but_other_ends_of_a_process_do_not(sweep, tmp_path, monkeypatch):
    def start():
        callback.on_trial_start(0, [], trial)
        return trial.max_failures

    there = {name: {"NodeID": name, "Alive": True} for name in "abc"}
    monkeypatch.setattr(ray, "nodes", lambda: list(there.values()))
    tracking = start_sweep(sweep.tracking_uri, sweep.name, {}, tmp_path)
    callback = SweepCallback(sweep, tracking, make_scheduler(sweep), 1, UNITS, "")
    trial = SimpleNamespace(trial_id="id", config=CONFIG | {"number": 0}, max_failures=2)
    assert [start(), start(), start()] == [2, 2, 2]
    there["a"]["Alive"] = False
    assert [start(), start()] == [3, 3]
    trial.max_failures = MOST_FAILURES
    del there["b"]
    assert start() == MOST_FAILURES


def test_the_last_failure_of_a_trial_is_the_one_that_is_told():
    text = "Failure # 1 (occurred at x)\nthe actor has died\nFailure # 2 (occurred at y)\nValueError: no\n"
    trial = SimpleNamespace(get_error=lambda: text)
    assert failure_in_words(last_failure(trial)) == "ValueError: no"


def test_a_trial_leaves_pictures_of_its_heatmaps_and_how_busy_its_machine_was(sweep, work, monkeypatch, capsys):
    monkeypatch.setattr(load, "FIRST", 0.01)
    reports, losses = work(CONFIG)
    with Image.open(io.BytesIO(work.points.files["gallery.png"])) as picture:
        assert picture.format == "PNG"
        assert picture.height > picture.width  # four images below each other
    assert 0 < work.points.load[0]["system/system_memory_usage_percentage"] < 100
    assert work.points.load[0]["system/system_memory_usage_megabytes"] > 10

    monkeypatch.setattr(gallery, "draw_gallery", lambda *rest: 1 / 0)
    shutil.rmtree(Path(reports[-1]["checkpoint_folder"]).parent)
    again, _ = work(CONFIG)
    assert not work.points.files
    assert "no gallery: ZeroDivisionError" in capsys.readouterr().out
    assert again[-1]["epoch"] == reports[-1]["epoch"]


def test_a_run_has_the_number_of_its_trial_or_of_its_repetition(sweep):
    assert run_name(sweep, CONFIG | {"number": 7}) == "l2 w=0.5 #07"
    repeated = {"regularizer": "none", "seed": sweep.new_seeds.start + 1}
    assert run_name(sweep, {FIXED: repeated}) == "none again 2"
