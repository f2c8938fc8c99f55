"""What the terminal prints once a sweep has ended: the tables, the pick and what to do next."""

import math
import shlex

from rich.console import Console

from sweeps import finalists
from sweeps.folder import SETTINGS
from sweeps.ranking import reason, table
from sweeps.recording import Recording
from sweeps.report.page import PAGE
from sweeps.results import SweepResult, TrialResult
from sweeps.settings import Sweep
from sweeps.tracking.model import ALIAS
from trainer.command import python
from trainer.locations import file_size
from trainer.metrics import ACCURACY, ROBUST_ACCURACY, TEST, TEST_ACCURACY, TEST_ROBUST_ACCURACY, VAL, metric


def print_result(result: SweepResult, console: Console) -> None:
    """Print how the sweep ended."""

    def line(text: str) -> None:
        console.print(text, soft_wrap=True, highlight=False, markup=False)

    sweep, picked, recording = result.sweep, result.pick, Recording(result.sweep)
    console.print(table(result.trials, picked))
    console.print(result.verdict, highlight=False, markup=False)
    if picked is not None:
        why = reason(result.trials, sweep.max_accuracy_drop, sweep.seeds, result.finalists)
        console.print(why, highlight=False, markup=False)
        clean, robust = (100 * picked.metrics[name] for name in (TEST_ACCURACY, TEST_ROBUST_ACCURACY))
        line(f"On test (not used for the choice) trial {picked.tag} has accuracy {clean:.1f} %, robust {robust:.1f} %.")
    if repeated := finalists.gather(sweep, recording.log, result.trials):
        console.print(finalists.table(repeated))
    if not sweep.mlflow.startswith("http"):
        ui = [python(), "-m", "mlflow", "ui", "--backend-store-uri", sweep.mlflow]
        line(f"Start MLflow:  {shlex.join(ui)}")
    line(f"Look at it:  {recording.page()}")
    line(f"See which won, and why:  {sweep.folder}/{PAGE}")
    if picked is not None and picked.regularizer != "none":
        line(f"Train the pick further:  {sweep.command('resume-best')}")
    if picked is not None and (sweep.local_folder / "models" / picked.trial_id).exists():
        line(f"Load it with MLflow:  models:/{sweep.name}@{ALIAS}")
    if sum(sweep.parts) == 1:
        line("One weight of each was tried: this ranks weights, not regularizers. --extend 4 gives a firmer answer.")
    if queued := recording.queued():
        line(queued)
    failed = sum(trial.status == "failed" for trial in result.trials)
    if failed or len(result.trials) < sweep.total_trials:
        line(f"{failed} of {sweep.total_trials} trials failed: traces are in {sweep.folder}/trials/*/failure.json")
    if result.short:
        line(f"Not every repetition of {', '.join(result.short)} finished; see {sweep.folder}/finalists-*")


def interrupted(sweep: Sweep) -> str:
    """What is left of a sweep that was interrupted, and how it goes on."""
    if file_size(f"{sweep.folder}/{SETTINGS}") is None:
        return "interrupted before the search began; the same command begins again"
    return f"interrupted; what is done is kept. Continue with:  {sweep.command('sweep', '--resume')}"


def print_trained_on(before: TrialResult, after: TrialResult, console: Console) -> None:
    """Print what more epochs did to a trial."""
    for split in (VAL, TEST):
        (accuracy, robust), (new_accuracy, new_robust) = (
            [100 * trial.metrics.get(metric(split, name), math.nan) for name in (ACCURACY, ROBUST_ACCURACY)]
            for trial in (before, after)
        )
        console.print(
            f"on {split}: accuracy {accuracy:.1f} → {new_accuracy:.1f} %, robust {robust:.1f} → {new_robust:.1f} %",
            highlight=False,
            markup=False,
        )
    console.print(f"checkpoint: {after.checkpoint}", soft_wrap=True, highlight=False, markup=False)
