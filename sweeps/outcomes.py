"""What a trial was asked to do and how it ended; knows no running Ray."""

import dataclasses
from typing import Any

from sweeps.proposals import FIXED, proposal, weight_of
from sweeps.ranking import Row
from sweeps.search import METRIC
from sweeps.settings import Sweep, write_json
from trainer.config import Trial
from trainer.locations import read_json

ROWS = "rows.json"


def trial_of(sweep: Sweep, config: dict[str, Any]) -> Trial:
    """The training that Tune's configuration asks for."""
    asked = proposal(config)
    return dataclasses.replace(
        sweep.trial, regularizer=asked["regularizer"], weight=weight_of(asked), seed=asked["seed"]
    )


def run_name(sweep: Sweep, config: dict[str, Any]) -> str:
    """Such as `ssim w=0.13 #07`, by the trial's number in the study; of a repeated finalist, `ssim w=0.13 again 2`."""
    trial = trial_of(sweep, config)
    if FIXED in config:
        return f"{trial.label} again {trial.seed - sweep.new_seeds.start + 1}"
    return f"{trial.label} #{config['number']:02d}"


def status_of(sweep: Sweep, config: dict[str, Any], result: dict[str, Any]) -> str:
    """finished, stopped (early), diverged or failed: no result, an error's, or that of another configuration."""
    if METRIC not in result or result.get("failed") or mismatch(sweep, config, result):
        return "failed"
    if result.get("diverged"):
        return "diverged"
    return "finished" if result.get("epoch") == sweep.trial.epochs else "stopped"


def mismatch(sweep: Sweep, config: dict[str, Any], result: dict[str, Any]) -> str | None:
    """What to say where a worker trained something else than it was asked to; None where it did not."""
    asked, trained = trial_of(sweep, config).digest(), result.get("digest")
    return None if trained == asked else f"its worker trained configuration {trained}, not {asked}"


def row_of(
    sweep: Sweep, units: dict[str, float], config: dict[str, Any], result: dict[str, Any], trial_id: str, failed: bool
) -> Row:
    """How a trial ended, for the ranking."""
    trial = trial_of(sweep, config)
    return Row(
        trial_id=trial_id,
        regularizer=trial.regularizer,
        weight=trial.weight,
        strength=trial.weight / units[trial.regularizer] if trial.weight else 0.0,
        seed=trial.seed,
        status="failed" if failed else status_of(sweep, config, result),
        accuracy=result.get("val/accuracy", 0.0),
        robust_accuracy=result.get(METRIC, 0.0),
        heatmap_ssim=result.get("val/heatmap_ssim", 0.0),
        heatmap_correlation=result.get("val/heatmap_correlation", 0.0),
        checkpoint=str(result.get("checkpoint_folder", "")),
        run="",  # known once MLflow has heard of it
        metrics={name: value for name, value in result.items() if name.startswith(("val/", "test/"))},
    )


def keep_rows(folder: str, rows: list[Row]) -> None:
    """Keep how the trials of a Tune folder ended: later parts need no Tune, nor its version, to know."""
    write_json(f"{folder}/{ROWS}", [dataclasses.asdict(row) for row in rows])


def kept_rows(folder: str) -> list[Row] | None:
    """How the trials of a Tune folder ended; None where they have not."""
    rows = read_json(f"{folder}/{ROWS}")
    return None if rows is None else [Row(**row) for row in rows]
