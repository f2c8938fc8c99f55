"""The report of a sweep: one HTML page that needs nothing else, for a browser, a telephone or a printer."""

import base64
import dataclasses
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from sweeps import plots
from sweeps.finalists import FIGURES
from sweeps.ranking import Row, pareto, reason, rule
from sweeps.results import Result
from trainer.config import UsageError
from trainer.evaluate.checkpoints import load_subject
from trainer.evaluate.gallery import explain
from trainer.locations import read_json, whole_file
from trainer.shards import evaluation_splits

IMAGES = 4  # in the gallery


def page(result: Result) -> str:
    """The report as HTML; all that comes from settings, names and errors is escaped."""
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    templates.filters |= {"percent": _percent, "figure": _figure}
    gallery, no_gallery = galleries(result)
    return templates.get_template("page.html").render(
        result=result,
        sweep=result.sweep,
        verdict=verdict(result),
        accuracies=picture(plots.accuracies(result), "svg"),
        responses=picture(plots.responses(result), "svg") if result.units else None,
        intervals=picture(plots.intervals(result), "svg") if repeated(result) else None,
        galleries=gallery,
        no_gallery=no_gallery,
        front=pareto(result.rows),
        figures=FIGURES,
        rule=rule(result.sweep.max_accuracy_drop),
        excluded=excluded(result),
        settings=settings(result),
    )


def write_report(result: Result, location: str) -> str:
    """Write the report to a file, by path or URL, and return it too.

    Raises:
        UsageError: if it cannot be written.
    """
    content = page(result)
    with whole_file(location) as stream:
        stream.write(content.encode())
    return content


def picture(figure: Figure, form: str) -> Markup:
    """A figure as the address of an image that is in the page itself."""
    kind = {"svg": "svg+xml", "png": "png"}[form]
    return Markup(f"data:image/{kind};base64,{base64.b64encode(plots.image(figure, form)).decode()}")


def verdict(result: Result) -> list[str]:
    """What the sweep found, in sentences."""
    picked, reference = result.picked, result.baseline
    found = [reason(result.rows, result.sweep.max_accuracy_drop)]
    if picked is None or reference is None:
        return found
    if picked.regularizer == "none":
        return [*found, "No penalty made the model more robust at an accuracy the rule allows."]
    key = "test/robust_accuracy"
    clean, robust, before = picked.metrics["test/accuracy"], picked.metrics[key], reference.metrics[key]
    found.append(
        f"On test, which chose nothing, its accuracy is {_percent(clean)} % and its robust accuracy {_percent(robust)} "
        f"%; the baseline's are {_percent(reference.metrics['test/accuracy'])} % and {_percent(before)} %."
    )
    intervals = {one["regularizer"]: one["figures"][key]["interval"] for one in repeated(result)}
    mine, its = intervals.get(picked.regularizer), intervals.get("none")
    if mine and its:
        apart = mine[0] > its[1] or its[0] > mine[1]
        found.append(
            f"Trained again with {result.sweep.seeds} new seeds, the 95 % intervals of the two robust accuracies on "
            f"test {'lie apart' if apart else 'overlap: the lead may be luck'}."
        )
    return found


def repeated(result: Result) -> list[dict[str, Any]]:
    """Finalists of which at least one repetition finished."""
    return [one for one in result.finalists if one["trials"]]


def excluded(result: Result) -> list[tuple[Row, str]]:
    """The trials that could not be picked, each with the reason."""
    found = []
    for row in result.rows:
        if row.status == "failed":
            failure = read_json(f"{result.sweep.folder}/trials/{row.trial_id}/failure.json") or {}
            why = f"failed: {failure.get('reason', 'its workers died, or trained another configuration')}"
        elif row.status == "diverged":
            why = "diverged: its loss was no longer a finite number"
        elif row.status == "stopped":
            why = "stopped early: less robust than half of the trials had been after as many images"
        elif result.baseline is None:
            why = "no baseline finished to compare with"
        elif row.accuracy < result.least_accuracy:
            below = 100 * (result.baseline.accuracy - row.accuracy)
            why = f"too inaccurate: {below:.1f} points below the baseline"
        else:
            continue
        found.append((row, why))
    return found


def galleries(result: Result) -> tuple[list[Markup], str | None]:
    """Heatmaps of the same images by the baseline and the best trial of each regularizer; else why there are none."""
    rows = [row for row in result.champions if row.checkpoint]
    rows.sort(key=lambda row: row.regularizer != "none")  # stable: the baseline first, then as they rank
    if not rows:
        return [], "no trial finished"
    data = result.sweep.trial.data
    try:
        _, test = evaluation_splits(data)
        explained = [explain(load_subject(row.checkpoint, data, {}), test, IMAGES, torch.device("cpu")) for row in rows]
    except (UsageError, OSError) as error:
        return [], str(error)
    names = [row.regularizer for row in rows]
    blocks = [slice(first, first + plots.GALLERY_COLUMNS) for first in range(0, len(rows), plots.GALLERY_COLUMNS)]
    return [picture(plots.gallery(names[block], explained[block]), "png") for block in blocks], None


def settings(result: Result) -> list[tuple[str, Any]]:
    """Everything the trials shared, by name; not MLflow's address, which may hold a password."""
    sweep = dataclasses.asdict(result.sweep)
    trial, placement = sweep.pop("trial"), sweep.pop("placement")
    own = {"name", "storage", "tracking_uri", "local_dir", "seed"}
    shared = {name: value for name, value in trial.items() if name not in ("regularizer", "weight")}
    shared |= {name: value for name, value in sweep.items() if name not in own}
    shared |= {name: value for name, value in placement.items() if name != "cache"}
    return [(name, ", ".join(map(str, v)) if isinstance(v, tuple) else v) for name, v in shared.items()]


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _figure(summary: dict[str, Any]) -> str:
    """Mean ± half of the interval, in %."""
    mean, interval = summary["mean"], summary["interval"]
    return _percent(mean) + (f" ± {_percent(interval[1] - mean)}" if interval else "")
