"""What a trial is asked to do; knows no running Ray."""

import dataclasses
from typing import Any

from sweeps.events import TrialStarted
from sweeps.proposals import FIXED, proposal, settings_of, weight_of
from sweeps.settings import Sweep
from trainer.config import Trial


def trial_of(sweep: Sweep, config: dict[str, Any]) -> Trial:
    """The training that Tune's configuration asks for."""
    asked = proposal(config)
    return dataclasses.replace(
        sweep.trial,
        regularizer=asked["regularizer"],
        weight=weight_of(asked),
        penalty_settings=settings_of(asked),
        seed=asked["seed"],
    )


def run_name(sweep: Sweep, config: dict[str, Any]) -> str:
    """Such as `ssim w=0.13 #07`, by the trial's number in the study; of a repeated finalist, `ssim w=0.13 again 2`."""
    trial = trial_of(sweep, config)
    if FIXED in config:
        return f"{trial.label} again {trial.seed - sweep.new_seeds.start + 1}"
    return f"{trial.label} #{config['number']:02d}"


def trial_started(
    sweep: Sweep, units: dict[str, float], part: str, trial_id: str, config: dict[str, Any]
) -> TrialStarted:
    """The event of a trial that Tune starts.

    Args:
        sweep: of the trial.
        units: calibrated unit of each regularizer's weight.
        part: folder of the run of Tune.
        trial_id: Tune's id.
        config: that Tune gives it.
    """
    trial = trial_of(sweep, config)
    return TrialStarted(
        trial_id=trial_id,
        name=run_name(sweep, config),
        part=part,
        regularizer=trial.regularizer,
        weight=trial.weight,
        strength=trial.weight / units[trial.regularizer] if trial.weight else 0.0,
        penalty_settings=dict(trial.penalty_settings),
        seed=trial.seed,
        epochs=trial.epochs,
        digest=trial.digest(),
        workers=sweep.placement.workers,
        repeats=FIXED in config,
    )
