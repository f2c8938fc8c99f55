"""What the process of a Tune trial does; imports little, as each such process has to do that first."""

from pathlib import Path
from typing import Any

from ray import tune
from ray.train import UserCallback

from sweeps.desk import Handed
from sweeps.outcomes import FIXED, run_name, trial_of
from sweeps.settings import Sweep
from trainer.in_trial import InTrialTrainer
from trainer.ray_trial import PARTIAL, run_trial


class EpochReports(UserCallback):
    """Tells Tune of every epoch, and not of checkpoints within one; leaves by SystemExit if Tune stops the trial."""

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        if not metrics[0].get(PARTIAL):
            tune.report(metrics[0])


def drive_trial(config: dict[str, Any], sweep: Sweep, spool: Path, units: dict[str, float], desk: Any) -> None:
    """The Tune trial: begin its MLflow run or go on with it, then let Ray Train work."""
    trial_id = tune.get_context().get_trial_id()
    trial = trial_of(sweep, config)
    strength = trial.weight / units[trial.regularizer] if trial.weight else 0.0
    recorder = Handed(spool, trial_id, desk=desk)
    recorder.begin(
        run_name(sweep, config),
        {"finalist": trial.regularizer} if FIXED in config else {},
        {"strength": strength, "workers": sweep.placement.workers},
    )
    run_trial(
        trial,
        placement=sweep.placement,
        storage=sweep.trials_folder,
        name=trial_id,
        recorder=recorder,
        callbacks=[EpochReports()],
        extra={"strength": strength},
        switch=desk,
        trainer=InTrialTrainer,
    )
