"""What the process of a Tune trial does, beside the trial's first worker.

There are as many such processes as trials at a time, so it imports no PyTorch, and nothing else that Tune has not.
"""

from dataclasses import dataclass
from typing import Any

from ray import tune
from ray.train import UserCallback
from ray.tune.integration.ray_train import TuneReportCallback

from sweeps.proposals import proposal, settings_of, weight_of
from trainer.epoch_report import PARTIAL
from trainer.placement import Placement
from trainer.ray_driver import run_trial


class EpochReports(UserCallback):
    """Tells Tune of every epoch, and not of checkpoints within one; leaves by SystemExit if Tune stops the trial."""

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        if not metrics[0].get(PARTIAL):
            tune.report(metrics[0])


class StockEpochReports(TuneReportCallback):
    """The same from stock Ray Train, whose controller has a process of its own."""

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        if not metrics[0].get(PARTIAL):
            super().after_report(run_context, metrics, checkpoint)


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What the trials of a sweep have in common, in plain values: a `Sweep` brings PyTorch with it.

    Args:
        trial: settings of each, but for regularizer, its weight and settings, and seed.
        placement: placement of its workers.
        folder: folder with a folder for each trial.
        switch: handle of the `StopSwitch`.
    """

    trial: dict[str, Any]
    placement: Placement
    folder: str
    switch: Any


def train_trial(config: dict[str, Any], shared: Shared) -> None:
    """The Tune trial: let Ray Train work."""
    asked = proposal(config)
    run_trial(
        shared.trial
        | {"regularizer": asked["regularizer"], "weight": weight_of(asked), "seed": asked["seed"]}
        | {"penalty_settings": settings_of(asked)},
        placement=shared.placement,
        storage=shared.folder,
        name=tune.get_context().get_trial_id(),
        callbacks=[EpochReports() if shared.placement.lean else StockEpochReports()],
        switch=shared.switch,
        in_tune=True,
    )
