"""A sweep as a notebook runs it, interrupts it, and goes on."""

import dataclasses
import io
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from mlflow import MlflowClient
from mlflow_server import run_of
from recorded import begin, end, new_sweep, report
from rich.console import Console

from sweeps import Sweep, capacity, presets
from sweeps.callback import SweepCallback
from sweeps.events import EpochReported, TrialEnded, TrialStarted
from sweeps.messages import Advanced, Note, Stage, TrialsBegan, TrialsEnded, TrialsGoOn, note, stage, tell, told_to
from sweeps.prepare import filled_in, on_cluster
from sweeps.recording import start_sweep
from sweeps.resuming import as_kept
from sweeps.terminal import Terminal
from trainer.config import Trial, UsageError
from trainer.placement import Placement

ROOT = Path(__file__).parents[2]


def test_the_package_is_imported_without_what_runs_it():
    code = (
        "import sys\nfrom sweeps import Sweep, SweepResult\nSweep()\n"
        "print(*{'torch', 'ray', 'mlflow', 'optuna', 'pandas', 'regularizers.base'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_a_sweep_has_a_default_for_everything(monkeypatch, tmp_path):
    monkeypatch.setenv("SWEEPS_STORAGE", str(tmp_path / "mine"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    sweep = Sweep()
    assert (sweep.storage, sweep.mlflow) == (f"{tmp_path}/mine", f"sqlite:///{tmp_path}/mine/mlflow.db")
    assert sweep.trial == presets.digits()
    assert {"none", "l2", "ssim", "psnr_hvs_m"} <= set(sweep.regularizers)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://there")
    assert (sweep.mlflow, Sweep(tracking_uri="http://here").mlflow) == ("http://there", "http://here")
    monkeypatch.delenv("SWEEPS_STORAGE")
    monkeypatch.chdir(tmp_path)
    assert Sweep().storage == f"{tmp_path}/runs", "workers stand elsewhere"
    assert Sweep(storage="s3://bucket/runs/", name="a").folder == "s3://bucket/runs/a"


def test_what_settings_leave_open_is_filled_in(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(digits.parent)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "w.pt").touch()
    trial = Trial(data=digits.name, model="resnet8", checkpoint=os.path.relpath(tmp_path / "w.pt"))
    sweep = Sweep(storage=str(tmp_path), trial=trial, placement=Placement(workers=2))
    filled = filled_in(sweep)
    assert (filled.trial.data, filled.trial.checkpoint) == (str(digits), str(tmp_path / "w.pt"))
    assert filled.trial.images_per_epoch == 1258, "the train split, once"
    assert filled.tracking_uri == f"sqlite:///{tmp_path}/mlflow.db"
    (tmp_path / "t1/epoch_0002").mkdir(parents=True)
    (tmp_path / "t1/epoch_0002/state.pt").touch()
    for changes, words in (
        ({"data": None}, "checkpoint=.*: needs data"),
        ({"batch_size": 2000}, "the train split has only 1258 images, fewer than one batch of 4000 over 2 workers"),
        ({"checkpoint": str(tmp_path / "t1")}, f"is the folder of a trial; its last epoch is {tmp_path}/t1/epoch_0002"),
        ({"data": str(tmp_path / "nowhere")}, "no such folder"),
    ):
        wrong = dataclasses.replace(sweep, trial=dataclasses.replace(trial, **changes))
        with pytest.raises(UsageError, match=words):
            filled_in(wrong)


def test_workers_take_what_is_asked_for_else_what_the_machines_have(monkeypatch):
    monkeypatch.setattr(capacity, "nodes", lambda: [capacity.Node(16, 4), capacity.Node(32, 4)])

    def taken(loaders=None, **placement):
        trial = presets.digits(loader_workers=loaders)
        sweep = on_cluster(Sweep(trial=trial, placement=Placement(**placement)))
        return sweep.placement.gpus_per_worker, sweep.placement.cpus_per_worker, sweep.trial.loader_workers

    assert taken() == (1, 4, 3), "the fewest CPUs that a GPU has"
    assert taken(loaders=0) == (1, 1, 0)
    assert taken(gpus_per_worker=0.0) == (0, 1, 0)
    assert taken(gpus_per_worker=0.5, loaders=5) == (0.5, 6, 5)
    assert taken(cpus_per_worker=2.0) == (1, 2, 3)
    monkeypatch.setattr(capacity, "nodes", lambda: [capacity.Node(16, 0)])
    assert taken() == (0, 1, 0)


def test_the_object_that_began_a_sweep_continues_it_but_not_with_other_settings(tmp_path, digits):
    asked = Sweep(name="s", storage=str(tmp_path), trial=Trial(data=str(digits), model="resnet8"), regularizers=("l2",))
    on_cluster(filled_in(asked)).save()
    kept = Sweep.load("s", str(tmp_path))
    assert kept != asked
    assert as_kept(asked, "resume") == as_kept(kept, "extend") == kept
    assert as_kept(dataclasses.replace(asked, max_accuracy_drop=0.1), "resume").max_accuracy_drop == 0.1
    assert as_kept(dataclasses.replace(asked, seeds=4, max_concurrent=1), "extend").seeds == 4
    with pytest.raises(UsageError, match="seeds=4: .* only max_accuracy_drop can be changed"):
        as_kept(dataclasses.replace(asked, seeds=4), "resume")
    with pytest.raises(UsageError, match="epochs=5: a sweep keeps its settings; only"):
        as_kept(dataclasses.replace(kept, trial=dataclasses.replace(kept.trial, epochs=5)), "extend")
    made = dataclasses.replace(
        kept, source=str(tmp_path / "w.pt"), trial=dataclasses.replace(kept.trial, checkpoint=f"{tmp_path}/s/start.pt")
    )
    made.save()
    given = dataclasses.replace(asked, trial=dataclasses.replace(asked.trial, checkpoint=str(tmp_path / "w.pt")))
    assert as_kept(given, "resume") == made, "its trials start from what was made of the checkpoint"


def test_without_a_callback_a_sweep_only_logs(caplog, capsys):
    with caplog.at_level(logging.INFO, "sweeps"):
        stage("calibrating")
        tell(Note("few images", warning=True))
        tell(TrialsGoOn())
        asked = dict(part="tune", regularizer="l2", weight=0.5, strength=0.25, seed=0, epochs=2, digest="d")
        tell(TrialStarted(trial_id="abc", name="l2 w=0.5 #07", **asked))
        tell(TrialEnded(trial_id="abc", epoch=2, metrics={"val/accuracy": 0.9, "val/robust_accuracy": 0.25}))
        tell(TrialEnded(trial_id="abd", error="it is broken"))
    assert [(one.levelname, one.message) for one in caplog.records] == [
        ("INFO", "calibrating"), ("WARNING", "few images"),
        ("INFO", "trial abc begins: l2 w=0.5 #07"),
        ("INFO", "trial abc ended after epoch 2: accuracy 90.0 %, robust 25.0 %"),
        ("INFO", "trial abd ended after epoch 0: it is broken"),
    ]  # fmt: skip
    assert capsys.readouterr().out == ""


def test_the_terminal_prints_paths_as_they_are():
    console = Console(file=io.StringIO(), width=80)
    with told_to(Terminal(console)):
        stage("sweep s in /runs/[red]/[/a]")
    assert console.file.getvalue() == "> sweep s in /runs/[red]/[/a]\n"


def test_each_sweep_tells_its_own_callback():
    first, second = [], []
    with told_to(first.append):
        stage("one")
        with told_to(second.append):
            note("two")
        stage("three")
    assert (first, second) == ([Stage("one"), Stage("three")], [Note("two")])


def test_the_terminal_shows_stages_notes_trials_and_what_is_logged(tmp_path, capsys):
    recording = start_sweep(new_sweep(tmp_path, "sqlite://"), {})
    with Terminal(Console(width=200)).shown() as terminal, told_to(terminal):
        stage("searching [2] trials")
        tell(Advanced("l2", 0.5))
        tell(Note("few images", warning=True))
        tell(TrialsBegan(total=1, epochs=2, slots=1))
        begin(recording, "a", name="l2 w=0.5 #00")
        for event in recording.log:
            tell(event)
        tell(EpochReported(trial_id="a", metrics=report(recording, "a", 1, 0.25)))
        tell(TrialEnded(trial_id="a", epoch=1, digest="d"))
        tell(TrialsEnded())
        logging.getLogger("sweeps.recording").warning("MLflow does not answer")
    logging.getLogger("sweeps.recording").warning("not here")
    assert capsys.readouterr().out.splitlines() == [
        "> searching [2] trials", "warning: few images", "  l2 w=0.5 #00: epoch 1/2, accuracy 90.0 %, robust 25.0 %",
        "[1/1] l2 w=0.5 #00: stopped, accuracy 90.0 %, robust 25.0 %", "MLflow does not answer",
    ]  # fmt: skip


def test_what_tune_had_not_kept_when_it_was_killed_counts_for_nothing(tmp_path):
    recording = start_sweep(new_sweep(tmp_path, "sqlite://"), {})
    for trial_id in ("kept", "lost"):
        begin(recording, trial_id)
        report(recording, trial_id, 2, 0.5)
        end(recording, trial_id)
    callback, said = SweepCallback(recording.sweep, recording, 3, {"l2": 1.0}, "tune"), []
    tune_trial = type("Trial", (), {"trial_id": "kept", "status": "PENDING", "RUNNING": "RUNNING"})
    with told_to(said.append):
        for _ in range(2):
            callback.on_step_begin(0, [tune_trial])
    (began,) = said
    assert (began.total, began.epochs) == (3, 2)
    assert [event.trial_id for event in began.earlier] == ["kept"] * 3


@pytest.fixture(scope="module")
def resumed(tmp_path_factory, digits):
    """A sweep that was interrupted after the first epoch and resumed in the same process; what happened meanwhile."""
    storage, told = tmp_path_factory.mktemp("notebook"), []
    trial = Trial(
        data=str(digits), model="resnet8", epochs=2, images_per_epoch=64, batch_size=32, robust_images=8, pgd_steps=1
    )
    sweep = Sweep(
        name="s", storage=str(storage), trial=trial, regularizers=("l2",), seeds=0, scheduler="none", keep="all"
    )

    def interrupting(message):
        first = isinstance(message, EpochReported) and not any(isinstance(one, EpochReported) for one in told)
        told.append(message)
        if first:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        sweep.run(interrupting)
    state, ended = sweep.status().state, not ray.is_initialized()
    return SimpleNamespace(sweep=sweep, told=told, state=state, ray_ended=ended, result=sweep.resume())


@pytest.mark.slow
def test_a_notebook_runs_a_sweep_interrupts_and_resumes_it(resumed):
    sweep, result = resumed.sweep, resumed.result
    assert (resumed.state, resumed.ray_ended) == ("interrupted", True)
    kinds = [type(message) for message in resumed.told]
    assert kinds.index(Stage) < kinds.index(Note) < kinds.index(TrialsBegan) < kinds.index(EpochReported)
    assert sorted(one.number for one in result.trials) == [0, 1]
    assert result.complete
    assert result.table().loc[0, "regularizer"] == "none"
    assert result.pick in result.trials
    assert result.trial(1).load_model().training is False
    with pytest.raises(UsageError, match="name=s: .* has a sweep of that name; choose another"):
        sweep.run()


@pytest.mark.slow
def test_a_notebook_extends_a_sweep_and_trains_on(resumed):
    sweep, told = resumed.sweep, []
    more = sweep.extend(1, told.append)
    assert sorted(one.number for one in more.trials) == [0, 1, 2, 3]
    assert sum(isinstance(one, TrialEnded) for one in told) == 2, "what has ended is not run again"
    assert {one.trial_id for one in resumed.result.trials} < {one.trial_id for one in more.trials}
    assert sweep.result().trials == more.trials

    on = more.trial(1).train_on(1)
    assert (on.number, on.status, on.regularizer) == (1, "finished", "l2")
    client = MlflowClient(sweep.mlflow)
    assert client.get_run(run_of(client, on.trial_id)).info.run_name.endswith(" #01 resumed")
    assert client.get_run(run_of(client, more.trial(1).trial_id)).data.tags["number"] == "#01"
