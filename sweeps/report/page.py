"""The report of a sweep: one HTML page that needs nothing else, for a browser, a telephone or a printer."""

import base64
import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from rich.progress import track

from sweeps import plots
from sweeps.finalists import FIGURES
from sweeps.ranking import Row, pareto, reason, rule
from sweeps.results import SweepResult
from sweeps.start_check import StartCheck
from trainer.config import in_words
from trainer.errors import UsageError
from trainer.evaluate.gallery import IMAGES, explain
from trainer.evaluate.subject import load_subject
from trainer.locations import read_json, whole_file
from trainer.metrics import TEST_ACCURACY, TEST_ROBUST_ACCURACY, VAL_ACCURACY
from trainer.shards import evaluation_splits

PAGE = "report.html"
GALLERY = "heatmaps"
SHOWN = 20  # trials in the description


def page(result: SweepResult, drawn: dict[str, Figure], no_gallery: str | None) -> str:
    """The report as HTML; all that comes from settings, names and errors is escaped.

    Args:
        result: result of the sweep.
        drawn: figures of the report by name.
        no_gallery: why there are no heatmaps, None if there are.
    """
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    templates.filters |= {"percent": _percent, "figure": _figure, "in_words": in_words}
    pictures = {name: picture(name, figure) for name, figure in drawn.items()}
    return templates.get_template("page.html").render(
        result=result,
        sweep=result.sweep,
        verdict=verdict(result),
        accuracies=pictures["accuracies"],
        responses=pictures.get("responses"),
        intervals=pictures.get("intervals"),
        galleries=[shown for name, shown in pictures.items() if name.startswith(GALLERY)],
        no_gallery=no_gallery,
        front=pareto(result.trials),
        unseen=[name for name in result.sweep.names if name not in {row.regularizer for row in result.champions}],
        figures=FIGURES,
        rule=rule(result.sweep.max_accuracy_drop, result.sweep.seeds),
        excluded=excluded(result),
        settings=settings(result),
    )


def figures(result: SweepResult) -> tuple[dict[str, Figure], str | None]:
    """The figures of a result by name, and why there is no gallery of heatmaps among them, None if there is."""
    drawn = {"accuracies": plots.accuracies(result)}
    if result.units:
        drawn["responses"] = plots.responses(result)
    if repeated(result):
        drawn["intervals"] = plots.intervals(result)
    blocks, no_gallery = galleries(result)
    return drawn | {f"{GALLERY}-{number}": block for number, block in enumerate(blocks)}, no_gallery


def write_report(result: SweepResult, location: str) -> tuple[str, dict[str, Figure]]:
    """Write the report to a file, by path or URL; returns it and its figures by name.

    Raises:
        UsageError: if it cannot be written.
    """
    drawn, no_gallery = figures(result)
    content = page(result, drawn, no_gallery)
    with whole_file(location) as stream:
        stream.write(content.encode())
    return content, drawn


def description(result: SweepResult) -> str:
    """The result in Markdown, for the page that MLflow has of the sweep: what was found, and the best trials."""
    rows = [
        f"| {_name(row)} | {row.strength:.3g} | {_percent(row.accuracy)} | {_percent(row.robust_accuracy)} "
        f"| {_percent(row.metrics.get(TEST_ACCURACY))} | {_percent(row.metrics.get(TEST_ROBUST_ACCURACY))} "
        f"| {row.status} | {row.tag} |"
        for row in result.trials[:SHOWN]
    ]
    head = ["| regularizer | strength | acc. | robust | test acc. | test robust | state | trial |"]
    head.append("|---|--:|--:|--:|--:|--:|---|---|")
    sentences = [*verdict(result), f"Among the artifacts, {PAGE} and figures/ show why; ranking.csv has every trial."]
    if result.pick:
        sentences.append("The pick is registered as a model under the sweep's name.")
    if result.start:
        sentences.append(in_markdown(result.start))
    return "\n\n".join([*sentences, "\n".join([*head, *rows])])


def in_markdown(start: StartCheck) -> str:
    """What a sweep starts from, and its warnings, for the page that MLflow has of it."""
    return "\n\n".join([*(f"**Warning:** {warning}" for warning in start.warnings), start.sentences])


def picture(name: str, figure: Figure) -> Markup:
    """A figure as the address of an image that is in the page itself; heatmaps are made of pixels."""
    form, kind = ("png", "png") if name.startswith(GALLERY) else ("svg", "svg+xml")
    return Markup(f"data:image/{kind};base64,{base64.b64encode(plots.image(figure, form)).decode()}")


def verdict(result: SweepResult) -> list[str]:
    """What the sweep found, and why, in sentences."""
    if result.pick is None:
        return [result.verdict]
    found = [
        result.verdict,
        reason(result.trials, result.sweep.max_accuracy_drop, result.sweep.seeds, result.finalists),
    ]
    clean, robust = (result.pick.metrics.get(key) for key in (TEST_ACCURACY, TEST_ROBUST_ACCURACY))
    return [
        *found,
        f"On test, which chose nothing, trial {result.pick.tag} has accuracy {_percent(clean)} %, robust "
        f"{_percent(robust)} %.",
    ]


def repeated(result: SweepResult) -> list[dict[str, Any]]:
    """Finalists of which at least one repetition finished."""
    return [one for one in result.finalists if one["trials"]]


def excluded(result: SweepResult) -> list[tuple[Row, str]]:
    """The trials that could not be picked, each with the reason."""
    found: list[tuple[Row, str]] = []
    repeated_accuracy = {
        one["chosen"]: one["figures"][VAL_ACCURACY]["mean"] for one in repeated(result) if one["regularizer"] != "none"
    }
    for row in result.trials:
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
            why = f"too inaccurate: {below:.1f} points below the mean of the baselines"
        elif (mean := repeated_accuracy.get(row.trial_id, 1.0)) < result.least_accuracy:
            below = 100 * (result.baseline.accuracy - mean)
            why = f"too inaccurate in the mean of its repetitions: {below:.1f} points below that of the baselines"
        else:
            continue
        found.append((row, why))
    return found


def galleries(result: SweepResult) -> tuple[list[Figure], str | None]:
    """Heatmaps of the same images by the baseline and the best trial of each regularizer; else why there are none."""
    rows = [row for row in result.champions if row.checkpoint]
    rows.sort(key=lambda row: row.regularizer != "none")  # stable: the baseline first, then as they rank
    if not rows:
        return [], "no trial finished"
    data = result.sweep.trial.data
    try:
        _, test = evaluation_splits(data)
        shown = track(rows, "drawing heatmaps", transient=True, disable=not sys.stdout.isatty())
        cpu, cache = torch.device("cpu"), result.sweep.placement.cache
        explained = [explain(load_subject(row.checkpoint, data, {}), test, IMAGES, cpu, cache) for row in shown]
    except (UsageError, OSError) as error:
        return [], str(error)
    names = [row.regularizer for row in rows]
    blocks = [slice(first, first + plots.GALLERY_COLUMNS) for first in range(0, len(rows), plots.GALLERY_COLUMNS)]
    return [plots.gallery(names[block], explained[block]) for block in blocks], None


def settings(result: SweepResult) -> list[tuple[str, Any]]:
    """Everything the trials shared, by name; not MLflow's address, which may hold a password."""
    sweep = dataclasses.asdict(result.sweep)
    trial, placement = sweep.pop("trial"), sweep.pop("placement")
    own = {"name", "storage", "tracking_uri", "local_dir", "seed"}
    shared = {name: value for name, value in trial.items() if name not in ("regularizer", "weight", "penalty_settings")}
    shared |= {name: value for name, value in sweep.items() if name not in own}
    shared |= {name: value for name, value in placement.items() if name != "cache"}
    shared["fixed"] = tuple(f"{name}={value:g}" for name, value in sweep["fixed"].items())
    said = {name: ", ".join(map(str, v)) if isinstance(v, tuple) else v for name, v in shared.items()}
    return [(name, value) for name, value in said.items() if value not in (None, "")]


def _name(row: Row) -> str:
    return " ".join([row.regularizer, *in_words(row.penalty_settings)])


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _figure(summary: dict[str, Any]) -> str:
    """Mean ± half of the interval, in %."""
    mean, interval = summary["mean"], summary["interval"]
    return _percent(mean) + (f" ± {_percent(interval[1] - mean)}" if interval else "")
