"""What a sweep leaves once its trials have ended: result, checkpoints to keep, report, the winner as a model."""

import dataclasses
import json
import logging
from collections.abc import Callable
from typing import TypeVar

from sweeps import finalists
from sweeps.checkpoints import keep_only
from sweeps.comparison import compare, verdict
from sweeps.events import FilesWritten, ModelSaved
from sweeps.importance import importances
from sweeps.messages import Note, stage, tell
from sweeps.plots import image
from sweeps.ranking import Row, as_csv, as_dict, as_text, pick, plain, reason
from sweeps.recording import Recording
from sweeps.report.page import PAGE, description, write_report
from sweeps.results import SweepResult, ranked
from sweeps.search import open_study
from sweeps.settings import Sweep
from sweeps.start_check import kept
from sweeps.tracking.model import save_model
from sweeps.tracking.server import reason as in_one_line
from trainer.locations import write_files

T = TypeVar("T")

log = logging.getLogger(__name__)


def finalize(sweep: Sweep, units: dict[str, float], rows: list[Row], recording: Recording) -> None:
    """Keep the result, and record it."""
    repeated = finalists.gather(sweep, recording.log, rows)
    how = sweep.max_accuracy_drop, sweep.seeds, finalists.as_dicts(repeated)
    picked = pick(rows, sweep.max_accuracy_drop, how[-1])
    result = as_dict(rows, picked, *how)
    compared = _or_say(lambda: compare(sweep, rows, repeated), "no comparisons") or []
    result |= {
        "comparisons": [dataclasses.asdict(one) for one in compared],
        "trials_per_regularizer": sweep.parts,
        "importances": _or_say(lambda: importances(open_study(sweep)), "no importances") or {},
    }
    ended = SweepResult(
        sweep=sweep,
        trials=ranked(sweep, rows),
        finalists=result["finalists"],
        units=units,
        importances=result["importances"],
        start=kept(sweep.folder),
        comparisons=compared,
    )
    text = f"{as_text(rows, picked)}\n{verdict(ended)}\n{reason(rows, *how)}\n"
    files = {
        "result.json": json.dumps(result, indent=1),
        "ranking.txt": text + (f"\n{plain(finalists.table(repeated))}" if repeated else ""),
        "ranking.csv": as_csv(rows),
    }
    write_files(sweep.folder, files)
    best = {f"best/{name}": value for name, value in picked.metrics.items()} if picked else {}
    recording.result_written(best, description(ended), tuple(files))
    keep_only(sweep, rows, [row.trial_id for finalist in repeated for row in finalist.repetitions], picked)
    stage("writing the report")
    report = _or_say(lambda: _report(ended), "no report")
    if report is not None:
        recording.append(FilesWritten(files=report))
    if picked is not None:
        stage("saving the winner as a model")
        where, cache = sweep.local_folder / "models" / picked.trial_id, sweep.placement.cache
        saved = _or_say(lambda: save_model(picked.checkpoint, sweep.trial.data, where, cache), "no model")
        if saved is not None:
            recording.append(ModelSaved(trial_id=picked.trial_id, folder=str(saved)))


def _report(ended: SweepResult) -> tuple[str, ...]:
    """The report and its figures, written into the sweep's folder; their names there."""
    _, drawn = write_report(ended, f"{ended.sweep.folder}/{PAGE}")
    figures = {f"figures/{name}.png": image(figure, "png") for name, figure in drawn.items()}
    write_files(ended.sweep.folder, figures)
    return PAGE, *figures


def _or_say(make: Callable[[], T], what: str) -> T | None:
    """What is made, or None and why: the result of a sweep is there all the same."""
    try:
        return make()
    except Exception as error:
        tell(Note(f"{what}: {in_one_line(error)}", warning=True))
        log.info(what, exc_info=True)
        return None
