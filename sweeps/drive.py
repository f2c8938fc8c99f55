"""What the process of a Tune trial does; imports little, as each such process has to do that first."""

from typing import Any

from ray import tune
from ray.train import UserCallback

from sweeps.outcomes import trial_of
from sweeps.settings import Sweep
from trainer.in_trial import InTrialTrainer
from trainer.ray_trial import PARTIAL, run_trial


class EpochReports(UserCallback):
    """Tells Tune of every epoch, and not of checkpoints within one; leaves by SystemExit if Tune stops the trial."""

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        if not metrics[0].get(PARTIAL):
            tune.report(metrics[0])


def drive_trial(config: dict[str, Any], sweep: Sweep, switch: Any) -> None:
    """The Tune trial: let Ray Train work."""
    run_trial(
        trial_of(sweep, config),
        placement=sweep.placement,
        storage=sweep.trials_folder,
        name=tune.get_context().get_trial_id(),
        callbacks=[EpochReports()],
        switch=switch,
        trainer=InTrialTrainer,
    )
