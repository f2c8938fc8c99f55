"""The report of an evaluation in the terminal, as Markdown."""

from typing import Any

from rich.box import MARKDOWN
from rich.table import Table

from trainer.evaluate.corruptions import CORRUPTIONS, SEVERITIES
from trainer.metrics import ACCURACY, CALIBRATION_ERROR, HEATMAP_SSIM, attacked_accuracy, corruption_accuracy, of_split

FEW = 4  # models with a column each


def report_table(report: dict[str, Any]) -> Table:
    """One row for each metric and one column for each model; of many models a row for each. Accuracies are in %.

    Args:
        report: content of report.json.
    """
    models = report["models"]
    metrics = [of_split(model["metrics"], report["split"]) for model in models]
    if len(models) > FEW:
        return _row_for_each_model(models, metrics)
    table = Table(f"on {report['split']}", box=MARKDOWN)
    for model in models:
        table.add_column(model["label"], justify="right")
    of_corruption = {corruption_accuracy(name, level): name for name in CORRUPTIONS for level in SEVERITIES}
    rows = {name: of_corruption.get(name, name) for values in metrics for name in values}
    for row in dict.fromkeys(rows.values()):
        if row in CORRUPTIONS:  # all severities in one row
            names = [corruption_accuracy(row, level) for level in SEVERITIES]
            table.add_row(f"{names[0]} to {SEVERITIES[-1]}", *(_figures(names, values) for values in metrics))
        else:
            table.add_row(row, *(_figure(row, values.get(row)) for values in metrics))
    return table


def _row_for_each_model(models: list[dict[str, Any]], metrics: list[dict[str, float]]) -> Table:
    attacks = [key for key in models[0]["attacks"] if not key.startswith(("fgsm", "square"))]
    names = {ACCURACY: ACCURACY, CALIBRATION_ERROR: CALIBRATION_ERROR}
    names |= {attacked_accuracy(key): key for key in attacks} | {HEATMAP_SSIM: HEATMAP_SSIM}
    table = Table("model", box=MARKDOWN)
    for heading in names.values():
        table.add_column(heading, justify="right")
    for model, values in zip(models, metrics, strict=True):
        table.add_row(model["label"], *(_figure(name, values.get(name)) for name in names))
    return table


def _figures(names: list[str], values: dict[str, float]) -> str:
    return " ".join(_figure(name, values.get(name)) for name in names)


def _figure(name: str, value: float | None) -> str:
    if value is None:
        return ""
    if name.endswith("examples"):
        return f"{value:.0f}"
    return f"{100 * value:.1f}" if "accuracy" in name else f"{value:.4g}"
