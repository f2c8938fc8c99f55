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
    """The event of a trial that Tune starts with this configuration.

    Args:
        units: calibrated unit of each regularizer's weight.
        part: folder of the run of Tune.
    """
    trial = trial_of(sweep, config)
    return started(
        sweep,
        trial,
        trial_id=trial_id,
        part=part,
        strength=trial.weight / units[trial.regularizer] if trial.weight else 0.0,
        number=proposal(config).get("number"),
        repeats=trial.seed - sweep.new_seeds.start + 1 if FIXED in config else 0,
    )


def started(sweep: Sweep, trial: Trial, **others: Any) -> TrialStarted:
    """The event of a trial that starts, with its name; `others` are the fields that the trial does not give."""
    event = TrialStarted(
        name="",
        regularizer=trial.regularizer,
        weight=trial.weight,
        penalty_settings=dict(trial.penalty_settings),
        seed=trial.seed,
        epochs=trial.epochs,
        digest=trial.digest(),
        workers=sweep.placement.workers,
        **others,
    )
    return dataclasses.replace(event, name=f"{trial.label} {event.tag}")
