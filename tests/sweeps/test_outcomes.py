"""How trials end: what a worker really trained, and what MLflow is told; without Ray."""

import dataclasses
import json
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from mlflow import MlflowClient
from ray import cloudpickle
from ray_train import train_worker
from recorded import run_of

from sweeps.callback import MOST_FAILURES, SweepCallback, failure_in_words, last_failure, trial_ended
from sweeps.events import PartEnded
from sweeps.messages import told_to
from sweeps.outcomes import trial_of, trial_started
from sweeps.proposals import FIXED
from sweeps.recording import start_sweep
from sweeps.search import METRIC
from sweeps.settings import Sweep
from sweeps.terminal import Terminal
from sweeps.trials import TrialState, mismatch, read_trials, results
from trainer.config import Trial
from trainer.epoch_report import failed_report
from trainer.locations import read_json
from trainer.trial_log import read_points, read_report

UNITS = {"l2": 2.0}
CONFIG = {"regularizer": "l2", "weight_l2": 0.5, "seed": 3, "number": 1}


@pytest.fixture
def sweep(tmp_path, digits):
    trial = Trial(data=str(digits), model="resnet8", epochs=2, images_per_epoch=48, batch_size=16, robust_images=8)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    return Sweep(name="s", storage=str(tmp_path), tracking_uri=uri, trial=trial, regularizers=("l2",))


def result(sweep, config=CONFIG, **change):
    return {METRIC: 0.9, "epoch": 2.0, "digest": trial_of(sweep, config).digest()} | change


def record(sweep, result, config=CONFIG, error=""):
    """The trial as the log has it once it is over."""
    log = [trial_started(sweep, UNITS, "tune", "id", config), trial_ended(sweep, "id", result, error)]
    return read_trials(log)["id"]


def test_fixed_and_proposed_configurations_ask_for_the_same(sweep):
    trial = trial_of(sweep, CONFIG)
    assert (trial.regularizer, trial.weight, trial.seed) == ("l2", 0.5, 3)
    assert trial_of(sweep, {FIXED: CONFIG}) == trial
    assert trial_of(sweep, {"regularizer": "none", "seed": 0}).weight == 0.0


def test_how_a_trial_ended_is_derived(sweep):
    assert record(sweep, result(sweep)).state is TrialState.FINISHED
    assert record(sweep, result(sweep, epoch=1.0)).state is TrialState.STOPPED
    assert record(sweep, result(sweep, epoch=1.0, diverged=1.0)).state is TrialState.DIVERGED
    assert record(sweep, {}).state is TrialState.FAILED
    assert record(sweep, failed_report("broken")).ended.error == "broken"
    assert record(sweep, result(sweep), error="killed").state is TrialState.FAILED
    other = record(sweep, result(sweep, CONFIG | {"weight_l2": 0.6}))
    assert other.state is TrialState.FAILED
    assert other.ended.digest in mismatch(other.started, other.ended)
    row = record(sweep, result(sweep)).result()
    assert (row.strength, row.status, row.robust_accuracy) == (0.25, "finished", 0.9)
    assert record(sweep, result(sweep) | {"val/accuracy": float("nan")}).result().accuracy == 0.0


def test_a_run_of_tune_counts_its_own_trials_once_it_has_ended(sweep):
    started = partial(trial_started, sweep, UNITS)
    ended = [trial_ended(sweep, one, result(sweep)) for one in ("a", "b", "c", "forgotten")]
    begun = [started("tune", "a", CONFIG), started("tune", "forgotten", CONFIG), started("tune-1", "b", CONFIG)]
    log = [*begun, *ended]
    assert results(log, "tune") is None
    log.append(PartEnded(part="tune", trials=("a",)))  # Tune was killed and had not kept the other
    assert [row.trial_id for row in results(log, "tune")] == ["a"]
    assert results(log, "tune-1") is None
    again = [*log, started("tune", "a", CONFIG), trial_ended(sweep, "a", {}, "broken")]
    assert [row.status for row in results(again, "tune")] == ["failed"]


@pytest.fixture
def work(sweep, monkeypatch, tmp_path):
    """Run what a worker runs, in this process: its reports, its losses, and what it says beside them."""

    def _work(config, checkpoint=None):
        trial = trial_of(sweep, config)
        folder = str(tmp_path / trial.digest())
        reports = train_worker(monkeypatch, trial, folder, checkpoint)
        assert read_json(f"{folder}/trial.json") == json.loads(json.dumps(trial.to_dict())) | {"digest": trial.digest()}
        _work.folder = Path(folder)
        _work.points = [point for epoch in (1, 2) for point in read_points(folder, epoch)]
        return reports, [point["metrics"]["step/loss"] for point in _work.points if "step/loss" in point["metrics"]]

    return _work


def test_two_weights_are_two_configurations_and_two_losses(sweep, work, tmp_path):
    light, strong = CONFIG, CONFIG | {"weight_l2": 50.0}
    (light_reports, light_losses), (strong_reports, strong_losses) = work(light), work(strong)
    assert len(light_losses) == len(strong_losses) == 6
    assert all(a != b for a, b in zip(light_losses, strong_losses, strict=True))
    digests = [{report["digest"] for report in reports} for reports in (light_reports, strong_reports)]
    assert digests == [{trial_of(sweep, config).digest()} for config in (light, strong)]
    assert digests[0] != digests[1]
    assert record(sweep, light_reports[-1], light).state is TrialState.FINISHED
    assert record(sweep, strong_reports[-1], light).state is TrialState.FAILED
    shutil.rmtree(tmp_path / digests[0].pop())
    again, losses = work(light)
    assert losses == light_losses
    assert again[-1]["digest"] == light_reports[-1]["digest"]


def test_a_trial_that_had_ended_before_its_driver_could_keep_that_says_it_again(sweep, work):
    reports, losses = work(CONFIG)
    said = {path: path.read_bytes() for path in work.folder.glob("reports/*")}
    points = [point for point in work.points if "step/loss" in point["metrics"]]
    assert (len(said), len(points)) == (2, 6)
    again, _ = work(CONFIG, reports[-1]["checkpoint_folder"])
    assert again == reports[-1:]
    assert record(sweep, again[-1]).state is TrialState.FINISHED
    (last,), again = work(CONFIG, reports[0]["checkpoint_folder"])  # one epoch of two is done again
    assert again == losses
    assert {path: path.read_bytes() for path in work.folder.glob("reports/*")} == said
    assert [point for point in work.points if "step/loss" in point["metrics"]] == points  # with their times
    assert {key: last[key] for key in last.keys() - {"train/images_per_second"}} == {
        key: reports[-1][key] for key in last.keys() - {"train/images_per_second"}
    }


def test_what_goes_through_tune_is_small_and_the_rest_is_in_the_trials_folder(sweep, work):
    reports, _ = work(CONFIG)
    assert len(reports[-1]) <= 10
    whole = read_report(str(work.folder), 2)
    assert whole["metrics"].keys() > {"val/accuracy", "test/accuracy", "train/loss", "val/heatmap_ssim"}
    assert whole["metrics"]["val/accuracy"] == reports[-1]["val/accuracy"]
    assert (whole["epoch"], whole["step"], whole["digest"]) == (2, 6, reports[-1]["digest"])
    Path(sweep.trials_folder).mkdir(parents=True)
    work.folder.rename(Path(sweep.trials_folder, "id"))
    row = record(sweep, reports[-1]).result()
    measured = {name: value for name, value in whole["metrics"].items() if name.startswith(("val/", "test/"))}
    assert row.metrics == {name: value if value == value else 0.0 for name, value in measured.items()}


@pytest.mark.parametrize(
    ("change", "state", "status"),
    [({}, "finished", "FINISHED"), ({"epoch": 1.0}, "stopped", "KILLED"), ({"digest": "other"}, "failed", "FAILED")],
)
def test_mlflow_is_told_how_a_trial_ended_and_what_it_trained(sweep, change, state, status, capsys, monkeypatch):
    monkeypatch.setattr(ray, "nodes", list)
    recording = start_sweep(sweep, {})
    last = result(sweep, checkpoint_folder="where") | {"val/accuracy": 0.5} | change
    callback = SweepCallback(sweep, recording, 1, UNITS, "tune")
    callback = cloudpickle.loads(cloudpickle.dumps(callback))
    trial = SimpleNamespace(trial_id="id", config=CONFIG | {"number": 7}, last_result=last)
    with told_to(Terminal()):
        callback.on_step_begin(0, [trial])
        callback.on_trial_start(0, [], trial)
        callback.on_trial_result(0, [], trial, last)
        callback.on_trial_complete(0, [], trial)
    assert not callback._nodes, "what is kept of trials that ended grows with them"
    assert recording.drain() == ""
    told = MlflowClient(sweep.tracking_uri).get_run(run_of(recording, "id"))
    assert (told.info.status, told.info.run_name) == (status, "l2 w=0.5 #07")
    assert told.data.tags["state"] == state
    assert told.data.tags["effective_digest"] == last["digest"]
    assert told.data.tags["checkpoint"] == "where"
    out = capsys.readouterr().out
    assert state in out
    assert ("its worker trained configuration other" in out) == (state == "failed")


def test_a_lost_node_gives_a_try_more_but_other_ends_of_a_process_do_not(sweep, tmp_path, monkeypatch):
    def start():
        callback.on_trial_start(0, [], trial)
        return trial.max_failures

    there = {name: {"NodeID": name, "Alive": True} for name in "abc"}
    monkeypatch.setattr(ray, "nodes", lambda: list(there.values()))
    callback = SweepCallback(sweep, start_sweep(sweep, {}), 1, UNITS, "tune")
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


def test_a_run_has_the_number_of_its_trial_or_of_its_repetition(sweep):
    started = partial(trial_started, sweep, UNITS, "tune", "id")
    first = started(CONFIG | {"number": 7})
    assert (first.name, first.tag, first.repeats) == ("l2 w=0.5 #07", "#07", 0)
    repeated = {"regularizer": "none", "seed": sweep.new_seeds.start + 1, "number": 3}
    second = started({FIXED: repeated})
    assert (second.name, second.tag, second.repeats) == ("none #03 again 2", "#03 again 2", 2)
    assert dataclasses.replace(first, resumed_from="id").tag == "#07 resumed"
    assert read_trials([first, trial_ended(sweep, "id", result(sweep))])["id"].result().number == 7
