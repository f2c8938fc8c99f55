"""Train a trial of a sweep that has ended further, from its last checkpoint."""

import dataclasses
import shlex

from sweeps.callback import trial_ended
from sweeps.capacity import slots, wait_for_machines, wait_for_room
from sweeps.checkpoints import only_weights
from sweeps.cluster import ray_cluster, where
from sweeps.events import SweepEnded
from sweeps.folder import driving
from sweeps.messages import Progress, note, stage, told_to
from sweeps.outcomes import started
from sweeps.preflight import check_shared
from sweeps.recording import start_sweep
from sweeps.results import TrialResult
from sweeps.trials import read_trials
from trainer.errors import FieldError
from trainer.ray_driver import run_trial


def train_on(result: TrialResult, epochs: int, progress: Progress | None, verbose: bool) -> TrialResult:
    """Train the trial so many epochs more; `TrialResult.train_on` is this."""
    sweep = result.sweep
    with told_to(progress), driving(sweep):
        check(result, epochs)
        stage(where())
        with ray_cluster(verbose=verbose, stock=not sweep.placement.lean):
            wait_for_machines(stage)
            slots(sweep)
            wait_for_room(sweep.placement, stage)
            check_shared(sweep.storage, sweep.trial)
            return _train(result, sweep.trial.epochs + epochs)


def check(result: TrialResult, epochs: int) -> None:
    """Refuse a trial that cannot be trained further.

    Raises:
        UsageError: saying why, and what to do instead.
    """
    sweep = result.sweep
    if not isinstance(epochs, int) or epochs < 1:
        raise FieldError("epochs", epochs, "give a whole number of at least 1")
    if not result.checkpoint:
        raise FieldError("trial", result.tag, f"it {result.status} and left no checkpoint")
    if only_weights(sweep, result.trial_id):
        start = ["--data", str(sweep.trial.data), "--model", sweep.trial.model, "--checkpoint", result.checkpoint]
        raise FieldError(
            "trial",
            result.tag,
            f"only its weights were kept, as `keep` {sweep.keep} says, and training further needs the optimizer's "
            f"state; start a sweep from them with {shlex.join(start)}, or give the next sweep `keep` all",
        )


def _train(result: TrialResult, epochs: int) -> TrialResult:
    """Continue the trial on the cluster that is joined, up to so many epochs."""
    sweep = result.sweep
    name = f"resume-{result.trial_id}-to-{epochs}"  # the same call goes on with what it had begun
    trial = dataclasses.replace(
        sweep.trial,
        regularizer=result.regularizer,
        weight=result.weight,
        penalty_settings=result.penalty_settings,
        seed=result.seed,
        epochs=epochs,
    )
    recording = start_sweep(sweep, {})
    stage(f"continuing {result.regularizer} {result.tag} to epoch {epochs}")
    recording.append(
        started(
            sweep,
            trial,
            trial_id=name,
            part="",
            strength=result.strength,
            number=result.number,
            resumed_from=result.trial_id,
            start=result.checkpoint,
        )
    )
    recording.open()
    try:
        ray_result = run_trial(
            trial.to_dict(),
            placement=sweep.placement,
            storage=sweep.trials_folder,
            name=name,
            start=result.checkpoint,
        )
        recording.append(trial_ended(sweep, name, ray_result.metrics or {}))
    finally:
        recording.append(SweepEnded(status="FINISHED"))  # it was before, whatever becomes of this trial
        recording.close()
    if queued := recording.queued():
        note(queued)
    row = read_trials(recording.log)[name].result()
    assert row is not None  # as its end was logged
    return TrialResult(**vars(row), sweep=sweep)
