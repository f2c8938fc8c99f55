"""Trials on a real Ray cluster: more wanted than fits, and stopped early."""

import contextlib
import dataclasses
import time
from pathlib import Path

import psutil
import pytest
import ray
import torch
from mlflow import MlflowClient
from ray.tune.schedulers import TrialScheduler
from recorded import new_sweep, run_of

from sweeps.capacity import slots, wait_for_room
from sweeps.cluster import ray_cluster
from sweeps.early_stopping import RuleScheduler, make_scheduler
from sweeps.recording import start_sweep
from sweeps.search import make_search
from sweeps.settings import Sweep
from sweeps.tuning import run_sweep, take_up_study
from trainer.config import Trial, UsageError
from trainer.models import build_model
from trainer.placement import Placement

UNITS = {"l2": 1.0, "tv": 1.0, "mse": 1.0}


@pytest.fixture
def sweep(tmp_path, digits):
    torch.manual_seed(0)
    torch.save(build_model("resnet8", 10).state_dict(), tmp_path / "start.pt")
    trial = Trial(
        data=str(digits), model="resnet8", checkpoint=str(tmp_path / "start.pt"), epochs=2, images_per_epoch=80,
        batch_size=16, robust_images=16, pgd_steps=1,
    )  # fmt: skip
    sweep = Sweep(
        name="s", storage=str(tmp_path), tracking_uri=f"sqlite:///{tmp_path}/mlflow.db", trial=trial,
        regularizers=tuple(UNITS), placement=Placement(workers=2),
    )  # fmt: skip
    Path(sweep.folder).mkdir()
    sweep.save()
    return sweep


class StopsL2(RuleScheduler):
    """Stops `l2` at its first result, so that one trial is stopped for sure."""

    def on_trial_result(self, tune_controller, trial, result):
        if trial.config["regularizer"] == "l2":
            return TrialScheduler.STOP
        return super().on_trial_result(tune_controller, trial, result)


def train_workers():
    return processes("RayTrainWorker")


def processes(name):
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # one that has ended and waits for its parent has no command line
            if name in " ".join(process.cmdline()):
                found.append(process)
    return found


@pytest.mark.slow
def test_trials_that_want_more_cpus_than_there_are_finish_and_free_them(sweep, tmp_path, monkeypatch):
    def stopping(sweep):
        scheduler = make_scheduler(sweep)
        scheduler.__class__ = StopsL2
        return scheduler

    monkeypatch.setattr("sweeps.tuning.make_scheduler", stopping)
    with ray_cluster(num_cpus=4):
        assert slots(sweep) == 2
        with pytest.raises(UsageError, match="lower workers"):
            slots(dataclasses.replace(sweep, placement=Placement(workers=5)))
        with pytest.raises(UsageError, match="no room for a trial after 0 minutes"):
            wait_for_room(Placement(workers=5), pytest.fail, limit=0)
        recording = start_sweep(sweep, {})
        rows = run_sweep(sweep, recording, UNITS)
        deadline = time.monotonic() + 60
        while ray.available_resources().get("CPU", 0) < 4 and time.monotonic() < deadline:
            time.sleep(0.5)
        assert ray.available_resources()["CPU"] == 4
        groups = ray.util.placement_group_table().values()
        assert [group for group in groups if group["state"] != "REMOVED"] == []
        _, left = psutil.wait_procs(train_workers(), timeout=30)
        assert left == []
    assert sorted(row.regularizer for row in rows) == ["l2", "mse", "none", "tv"]
    assert {row.status for row in rows} <= {"finished", "stopped"}
    by_name = {row.regularizer: row for row in rows}
    assert by_name["none"].status == "finished"
    assert by_name["l2"].status == "stopped"
    run = MlflowClient(sweep.tracking_uri).get_run(run_of(recording, by_name["l2"].trial_id))
    assert (run.info.status, run.data.tags["state"]) == ("KILLED", "stopped")
    assert Path(by_name["l2"].checkpoint, "state.pt").exists()


def test_a_study_whose_last_line_was_cut_off_by_a_full_disk_goes_on(tmp_path):
    sweep = new_sweep(tmp_path, "")
    make_search(sweep, {"l2": 1.0}).suggest("a")
    journal = sweep.local_folder / "study.journal"
    journal.write_bytes(journal.read_bytes()[:-5])
    take_up_study(sweep)
    for trial in ("b", "c"):  # each adds lines behind the last one
        make_search(sweep, {"l2": 1.0}).suggest(trial)
    take_up_study(sweep)
    assert len(make_search(sweep, {"l2": 1.0}).study.trials) > 2
