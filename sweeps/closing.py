"""What a sweep leaves once its trials have ended: result, checkpoints to keep, report, the winner as a model."""

import json
from collections.abc import Callable

from sweeps import finalists
from sweeps.checkpoints import keep_only
from sweeps.finalists import Finalist
from sweeps.importance import importances
from sweeps.ranking import Row, as_csv, as_dict, as_text, pick, plain, rank, reason
from sweeps.report import PAGE, description, write_report
from sweeps.results import Result
from sweeps.search import open_study
from sweeps.settings import Sweep, write_json
from sweeps.tracking import Tracking
from sweeps.tracking.delivery import reason as in_one_line
from sweeps.tracking.model import save_model


def close(
    sweep: Sweep, units: dict[str, float], rows: list[Row], tracking: Tracking, stage: Callable[[str], None]
) -> list[Finalist]:
    """Keep the result, and record it.

    Args:
        sweep: whose trials have ended.
        units: calibrated unit of each regularizer's weight.
        rows: its trials.
        tracking: of the sweep.
        stage: told what happens now.

    Returns:
        The best weights with their repetitions.
    """
    repeated = finalists.gather(sweep, rows)
    picked = pick(rows, sweep.max_accuracy_drop)
    result = as_dict(rows, picked, sweep.max_accuracy_drop)
    result |= {
        "finalists": finalists.as_dicts(repeated),
        "trials_per_regularizer": sweep.parts,
        "importances": importances(open_study(sweep)),
    }
    write_json(f"{sweep.folder}/result.json", result)  # at once: whoever reads it meets the old one or the new
    keep_only(sweep, rows, [row.trial_id for finalist in repeated for row in finalist.repetitions], picked)
    stage("writing the report")
    ended = Result(
        sweep=sweep, rows=rank(rows), finalists=result["finalists"], units=units, importances=result["importances"]
    )
    text = f"{as_text(rows, picked)}\n{reason(rows, sweep.max_accuracy_drop)}\n"
    files = {
        "ranking.txt": text + (f"\n{plain(finalists.table(repeated))}" if repeated else ""),
        "ranking.csv": as_csv(rows),
        "result.json": json.dumps(result, indent=1),
        **write_report(ended, f"{sweep.folder}/{PAGE}"),
    }
    best = {f"best/{name}": value for name, value in picked.metrics.items()} if picked else {}
    tracking.log_result(best, description(ended), files)
    if picked is not None:
        stage("saving the winner as a model")
        try:
            folder = save_model(picked.checkpoint, sweep.trial.data, sweep.local_folder / "models" / picked.trial_id)
        except Exception as error:  # an architecture that cannot be exported; its checkpoint is there all the same
            stage(f"the winner is no model of MLflow: {in_one_line(error)}")
        else:
            tracking.log_model(picked.trial_id, folder)
    return repeated
