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


def trial_started(
    sweep: Sweep, units: dict[str, float], part: str, trial_id: str, config: dict[str, Any]
) -> TrialStarted:
    """The event of a trial that Tune starts.

    Args:
        sweep: sweep of the trial.
        units: calibrated unit of each regularizer's weight.
        part: folder of the run of Tune.
        trial_id: Tune's id.
        config: configuration that Tune gives it.
    """
    trial = trial_of(sweep, config)
    started = TrialStarted(
        trial_id=trial_id,
        name="",
        part=part,
        regularizer=trial.regularizer,
        weight=trial.weight,
        strength=trial.weight / units[trial.regularizer] if trial.weight else 0.0,
        penalty_settings=dict(trial.penalty_settings),
        seed=trial.seed,
        epochs=trial.epochs,
        digest=trial.digest(),
        workers=sweep.placement.workers,
        number=proposal(config).get("number"),
        repeats=trial.seed - sweep.new_seeds.start + 1 if FIXED in config else 0,
    )
    return dataclasses.replace(started, name=f"{trial.label} {started.tag}")
