"""A sweep as its driver and its workers record it, without either."""

from sweeps.events import EpochReported, TrialEnded, TrialStarted
from sweeps.recording import start_sweep
from sweeps.settings import Sweep
from sweeps.tracking.cursor import SWEEP
from trainer.config import Trial
from trainer.trial_log import TrialLog


def new_sweep(folder, uri, name="s", **change):
    """Settings of a sweep, in its folder."""
    trial = Trial(data="nowhere", model="resnet8", epochs=2)
    settings = {"regularizers": ("l2",), "seeds": 0} | change
    sweep = Sweep(name=name, storage=str(folder), tracking_uri=uri or None, trial=trial, **settings)
    sweep.save()
    return sweep


def start(folder, uri, name="s", **change):
    """The record of a new sweep."""
    return start_sweep(new_sweep(folder, uri, name, **change), {"epochs": 2})


def begin(recording, trial_id, name="l2 w=0.5", **change):
    """A trial begins; where its worker writes."""
    asked = dict(part="tune", regularizer="l2", weight=0.5, strength=0.25, seed=0, epochs=2, digest="d")
    recording.append(TrialStarted(trial_id=trial_id, name=name, **asked | change))
    log = TrialLog(f"{recording.sweep.trials_folder}/{trial_id}", "d")
    log.configured({"regularizer": "l2", "weight": 0.5})
    return log


def train(log, first, last):
    """An epoch of steps as `fit` records them."""
    for step in range(first, last + 1):
        log.record({"step/loss": 1 / step, "step/penalty": 2 / step}, step)
    log.report({"val/accuracy": 1 - 1 / last}, last)


def trained(recording, *trials):
    """Whole trials of five steps."""
    for trial in trials:
        train(begin(recording, trial, trial), 1, 5)
        end(recording, trial)


def report(recording, trial_id, epoch, robust, **more):
    """The driver hears of an epoch."""
    metrics = {"epoch": float(epoch), "val/accuracy": 0.9, "val/robust_accuracy": robust} | more
    recording.append(EpochReported(trial_id=trial_id, metrics=metrics))
    return metrics


def end(recording, trial_id, epoch=2, **change):
    """The trial is over."""
    recording.append(TrialEnded(trial_id=trial_id, epoch=epoch, digest="d", **change))


def run_of(recording, trial_id=SWEEP):
    """Id of the trial's run, or the sweep's, in MLflow; empty before it is there."""
    return recording.uploader().cursors.read(trial_id).run
