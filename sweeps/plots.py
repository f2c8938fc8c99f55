"""Figures of a sweep's result: accuracy against robust accuracy, the effect of the weight, intervals, heatmaps.

Colors are those of Okabe and Ito, which color-blind readers tell apart. There are more regularizers than colors, so
each has a marker of its own too, the same in every figure and every sweep.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from io import BytesIO
from typing import Any

from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullLocator

from regularizers import REGULARIZERS
from sweeps.ranking import Row, pareto
from sweeps.results import SweepResult
from trainer.evaluate.gallery import COLORS as HEATMAP
from trainer.evaluate.gallery import Explained, scaled
from trainer.metrics import ACCURACY, ROBUST_ACCURACY, TEST, TEST_ROBUST_ACCURACY, metric

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F6000")  # their yellow is pale on white
MARKERS = "os^DvPX*"
FILLS = ("full", "none", "left", "top", "right", "bottom")  # enough for 31 regularizers of the user's own
INK, FAINT = "#000000", "#8C8C8C"
WIDTH = 5.0  # inches; a telephone shows 70 pixels to one of them, where 10 points are as large as its text
GALLERY_COLUMNS = 5  # models beside each other, the images not counted
STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E3E3E3",
    "figure.constrained_layout.use": True,
    "savefig.dpi": 150,
    "svg.hashsalt": "heatmap-sweeps",  # the same figure is the same file
}


def look(name: str) -> dict[str, Any]:
    """How points of a regularizer are drawn: color, marker, and how that is filled."""
    if name == "none":
        return {"color": INK, "marker": "+", "markersize": 11, "markeredgewidth": 2.5}
    number = sorted(REGULARIZERS.keys() - {"none"}).index(name)
    color, fill = COLORS[number % len(COLORS)], FILLS[number // len(MARKERS) % len(FILLS)]
    face = "white" if fill == "none" else color
    half = {} if fill in ("full", "none") else {"fillstyle": fill, "markerfacecoloralt": "white"}
    return {"color": color, "marker": MARKERS[number % len(MARKERS)], "markersize": 8, "markerfacecolor": face} | half


def _styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw in the style of this file, whatever matplotlib is set to elsewhere."""

    @wraps(draw)
    def wrapper(*arguments: Any) -> Figure:
        with rc_context(STYLE):
            return draw(*arguments)

    return wrapper


@_styled
def accuracies(result: SweepResult) -> Figure:
    """Every finished trial by accuracy and robust accuracy on val, the front of those that none beats, and the pick.

    Trials left of the dashed line are less accurate than the selection rule allows.
    """
    figure = Figure(figsize=(WIDTH, 5.0))
    axes = figure.subplots()
    finished = [row for row in result.trials if row.status == "finished"]
    unbeaten = pareto(finished)
    front = sorted((row for row in finished if row.trial_id in unbeaten), key=lambda row: row.accuracy)
    axes.plot(*_percent(front), color=FAINT, linewidth=1.5)
    for row in reversed(finished):  # the best on top
        axes.plot(*_percent([row]), **look(row.regularizer))
    handles = [
        Line2D([], [], linestyle="", label=name, **look(name))
        for name in result.sweep.names
        if any(row.regularizer == name for row in finished)
    ]
    if result.pick:
        ring: dict[str, Any] = {"marker": "o", "markersize": 16, "markerfacecolor": "none", "color": INK}
        axes.plot(*_percent([result.pick]), **ring)
        handles.append(Line2D([], [], linestyle="", label="the pick", **ring | {"markersize": 11}))
    handles.append(Line2D([], [], color=FAINT, linewidth=1.5, label="unbeaten"))
    if result.baseline:
        axes.axvline(100 * result.least_accuracy, color=FAINT, linestyle="--", linewidth=1)
        handles.append(Line2D([], [], color=FAINT, linestyle="--", linewidth=1, label="least accuracy"))
    axes.margins(0.08)
    axes.set(xlabel="accuracy on val (%)", ylabel="robust accuracy on val (%)")
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9, handletextpad=0.3)
    return figure


@_styled
def responses(result: SweepResult) -> Figure:
    """Accuracy and robust accuracy on val over the strength of each regularizer's weight, in panels of their own.

    The vertical line is the best weight of each, horizontal ones are the baseline. Trials that did not finish are
    crosses without a curve: they were measured on fewer images, after fewer epochs.
    """
    names = [name for name in result.sweep.names if name in result.units]
    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(WIDTH, 1.5 * lines + 1.2))
    panels = iter(figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flat)
    curves: Any = (("accuracy", COLORS[0], "o", "-"), ("robust_accuracy", COLORS[1], "s", "--"))
    best = {row.regularizer: row.strength for row in result.champions}
    tried = [row.strength for row in result.trials if row.regularizer in names]
    ranges = [REGULARIZERS[name].strengths() for name in names]
    reach = min([low for low, _ in ranges] + tried) / 1.5, max([high for _, high in ranges] + tried) * 1.5
    for number, (name, axes) in enumerate(zip(names, panels, strict=False)):
        rows = sorted((row for row in result.trials if row.regularizer == name), key=lambda row: row.strength)
        if name in best:
            axes.axvline(best[name], color=FAINT, linewidth=1.2)
        for key, color, marker, line in curves:
            for finished, form in ((True, f"{marker}{line}"), (False, "x")):
                shown = [row for row in rows if (row.status == "finished") == finished]
                values = [100 * getattr(row, key) for row in shown]
                axes.plot([row.strength for row in shown], values, form, color=color, markersize=5, linewidth=1.5)
            if result.baseline:
                axes.axhline(100 * getattr(result.baseline, key), color=color, linewidth=1, linestyle=":")
        axes.set_title(name, fontsize=9, loc="left")
        axes.set_xscale("log")
        axes.set_xlim(*reach)
        axes.xaxis.set_major_locator(LogLocator(numticks=3))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.tick_params(labelbottom=number >= len(names) - columns)
        axes.margins(0.08)
    for axes in panels:  # those left over
        axes.set_axis_off()
    figure.supxlabel("strength (weight in calibrated units)", fontsize=10)
    figure.supylabel("% on val", fontsize=10)
    handles = [Line2D([], [], color=c, marker=m, linestyle=s, label=n.replace("_", " ")) for n, c, m, s in curves]
    handles += [
        Line2D([], [], color=INK, linestyle=":", label="baseline"),
        Line2D([], [], color=FAINT, label="best weight"),
        Line2D([], [], color=INK, marker="x", linestyle="", label="did not finish"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return figure


@_styled
def intervals(result: SweepResult) -> Figure:
    """Mean and 95 % interval of each finalist's repetitions on test, and every repetition as a dot; best on top."""
    measured = [one for one in result.finalists if one["trials"]]
    measured.sort(key=lambda one: one["figures"][TEST_ROBUST_ACCURACY]["mean"])
    figure = Figure(figsize=(WIDTH, 0.36 * len(measured) + 1.0))
    for axes, name in zip(figure.subplots(1, 2, sharey=True), (ACCURACY, ROBUST_ACCURACY), strict=True):
        for height, one in enumerate(measured):
            values = one["figures"][metric(TEST, name)]
            how = look(one["regularizer"])
            axes.plot([100 * v for v in values["values"]], [height] * len(values["values"]), "|", color=FAINT)
            if values["interval"]:
                axes.plot([100 * v for v in values["interval"]], [height, height], color=how["color"], linewidth=2)
            axes.plot([100 * values["mean"]], [height], **how)
        low, high = axes.get_xlim()
        axes.set_xlim(max(low, -2), min(high, 102))  # an interval of two seeds may leave what is possible
        axes.set_ylim(-0.6, len(measured) - 0.4)
        axes.set_yticks(range(len(measured)), [one["regularizer"] for one in measured])
        axes.set_xlabel(f"{name.replace('_', ' ')}\non test (%)")
    return figure


@_styled
def gallery(names: Sequence[str], explained: Sequence[Explained]) -> Figure:
    """Images and their heatmaps by several models, one column each; a frame marks an image that is misclassified.

    Args:
        names: names of the models; a telephone has room for `GALLERY_COLUMNS`.
        explained: what each says of the images, which are the same.
    """
    images = explained[0].pixels.permute(0, 2, 3, 1).cpu().numpy()
    figure = Figure(figsize=(WIDTH / 5 * (1 + len(names)), WIDTH / 5 * len(images) + 0.6))
    axes = figure.subplots(len(images), 1 + len(names), squeeze=False)
    for cell in axes.flat:
        cell.set(xticks=[], yticks=[])
        cell.spines[:].set_visible(False)
    for cell, picture in zip(axes[:, 0], images, strict=True):
        cell.imshow(picture, interpolation="nearest")
    for column, name, one in zip(axes[:, 1:].T, names, explained, strict=True):
        column[0].set_title(name, fontsize=8)
        missed = (one.guesses != one.labels).tolist()
        for cell, heatmap, wrong in zip(column, scaled(one.heatmaps).cpu().numpy(), missed, strict=True):
            cell.imshow(heatmap, cmap=HEATMAP, vmin=-1, vmax=1, interpolation="nearest")
            cell.spines[:].set(visible=wrong, color=COLORS[1], linewidth=2)
    lowers, raises = (Patch(color=colormaps[HEATMAP](end)) for end in (0.1, 0.9))
    labels = {"raises the class's score": raises, "lowers it": lowers}
    labels["taken for another class"] = Patch(fill=False, edgecolor=COLORS[1], linewidth=2)
    columns = 3 if len(names) > 3 else 1  # else it is wider than the figure
    figure.legend(labels.values(), labels.keys(), loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
    return figure


def image(figure: Figure, form: str) -> bytes:
    """The figure as a file: `png`, or `svg` for what is not made of pixels."""
    stream = BytesIO()
    with rc_context(STYLE):
        figure.savefig(stream, format=form, metadata={"Date": None} if form == "svg" else None)
    return stream.getvalue()


def _percent(rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    return [100 * row.accuracy for row in rows], [100 * row.robust_accuracy for row in rows]
