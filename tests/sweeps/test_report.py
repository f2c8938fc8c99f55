"""The report and the figures of a sweep that has ended."""

import dataclasses
import io
import json
import re
import sys
from html.parser import HTMLParser

import pytest
import torch
from matplotlib.lines import Line2D
from PIL import Image

from regularizers import REGULARIZERS
from sweeps import plots
from sweeps.finalists import FIGURES, Finalist, as_dicts
from sweeps.ranking import Row, as_dict, pick
from sweeps.report import __main__ as command
from sweeps.report.page import description, excluded, figures, settings, verdict, write_report
from sweeps.report.page import page as report_page
from sweeps.results import SweepResult
from sweeps.settings import Sweep
from sweeps.start_check import StartCheck, keep
from trainer.config import Trial
from trainer.models import build_model
from trainer.placement import Placement

NAME = 'a<b>&"c'
VOID = {"meta", "img", "link", "br"}


class Page(HTMLParser):
    """Text, and what it refers to; fails on a tag that is not closed by its own."""

    def __init__(self, html):
        super().__init__()
        self.open, self.text, self.sources = [], "", []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.sources += [value for name, value in attributes if name in ("src", "href", "srcset", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def row(name, strength, accuracy, robust, status="finished", checkpoint=""):
    return Row(
        trial_id=f"{name}_{strength:g}", regularizer=name, weight=7 * strength, strength=strength, seed=0,
        status=status, accuracy=accuracy, robust_accuracy=robust, heatmap_ssim=0.0, heatmap_correlation=0.0,
        checkpoint=checkpoint, metrics=dict(zip(FIGURES, (accuracy, robust) * 2, strict=True)),
    )  # fmt: skip


@pytest.fixture
def ended(tmp_path, digits):
    """The folder of a sweep that has ended, as all_regularizers.py leaves it, with real checkpoints."""
    trial = Trial(data=str(digits), model="resnet8", pgd_eps=0.03)
    sweep = Sweep(
        name=NAME, storage=str(tmp_path), tracking_uri="http://me:secret@host", trial=trial,
        regularizers=("l2", "tv", "cor", "mse"), trials_per_regularizer=2, seeds=2,
        placement=Placement(gpus_per_worker=0.0, cpus_per_worker=1.0),
    )  # fmt: skip
    folder = tmp_path / NAME
    folder.mkdir()
    for name in ("none", "l2"):
        state = {"model": build_model("resnet8", 10).state_dict(), "trial": trial.to_dict() | {"regularizer": name}}
        (folder / name).mkdir()
        torch.save(state, folder / name / "state.pt")
    rows = [
        row("none", 0.0, 0.90, 0.1, checkpoint=str(folder / "none")),
        row("l2", 3.0, 0.89, 0.4, checkpoint=str(folder / "l2")),
        row("l2", 30.0, 0.5, 0.6),
        row("tv", 1.0, 0.7, 0.3, "stopped"),
        row("tv", 2.0, 0.0, 0.0, "diverged"),
        row("cor", 1.0, 0.0, 0.0, "failed"),
    ]
    repeated = [
        Finalist(regularizer=one.regularizer, weight=one.weight, strength=one.strength, chosen=one.trial_id,
                 repetitions=(one, row(one.regularizer, one.strength, one.accuracy, one.robust_accuracy + 0.01)))
        for one in rows[:2]
    ]  # fmt: skip
    sweep.save()
    result = as_dict(rows, pick(rows, 0.02), 0.02)
    result |= {"finalists": as_dicts(repeated), "trials_per_regularizer": [2]}
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "calibration.json").write_text(json.dumps({"l2": 7.0, "tv": 7.0, "cor": 7.0, "mse": 7.0}))
    (folder / "trials" / "cor_1").mkdir(parents=True)
    (folder / "trials" / "cor_1" / "failure.json").write_text(json.dumps({"reason": "<script>alert(1)</script>"}))
    return tmp_path


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["report", *map(str, arguments)])
    return command.main()


def test_the_page_holds_everything_and_needs_nothing(ended, monkeypatch, capsys):
    assert run(monkeypatch, "--name", NAME, "--storage", ended, "--out", ended / "out.html") == 0
    assert capsys.readouterr().out == f"{ended}/out.html\n"
    html = (ended / "out.html").read_text()
    page = Page(html)
    assert len(page.sources) == 4  # both accuracies, intervals, weights, one gallery
    assert all(re.match(r"data:image/(svg\+xml|png);base64,", source) for source in page.sources)
    assert "url(" not in html
    assert "@media print" in html
    assert 'name="viewport"' in html
    text = " ".join(page.text.split())
    for words in (
        NAME, "<script>alert(1)</script>", "Pick: l2, trial l2_3", "best robust accuracy on val", "89.0 ± 0.0",
        "too inaccurate: 40.0 points below", "stopped early", "diverged", "resnet8", "pgd_eps",
    ):  # fmt: skip
        assert words in text, words
    assert "secret" not in html


def test_the_page_says_what_the_sweep_started_from_and_warns(ended, monkeypatch):
    def written():
        assert run(monkeypatch, "--name", NAME, "--storage", ended) == 0
        html = (ended / NAME / "report.html").read_text()
        return html, " ".join(Page(html).text.split())

    html, text = written()
    assert "start checkpoint classifies" not in text, "a sweep that did not measure it has a report all the same"
    assert 'class="warnings"' not in html
    good = StartCheck(
        accuracy=0.9, measured=359, chance=0.11, classes=10, checkpoint=True, val_images=359, attacked=256,
        steps_per_epoch=32, epochs=2,
    )  # fmt: skip
    keep(f"{ended}/{NAME}", good)
    html, text = written()
    assert good.sentences in text
    assert "Warning:" not in text
    assert 'class="warnings"' not in html
    poor = dataclasses.replace(good, accuracy=0.11, steps_per_epoch=1)
    keep(f"{ended}/{NAME}", poor)
    html, text = written()
    assert html.count('class="warnings"') == 1
    assert len(poor.warnings) == 2
    for warning in poor.warnings:
        assert f"Warning: {warning}".replace("`", "") in text  # names of fields alone
        assert f"**Warning:** {warning}" in description(SweepResult.load(NAME, str(ended)))


def test_without_its_data_only_the_heatmaps_are_missing(ended, monkeypatch):
    path = ended / NAME / "sweep.yaml"
    path.write_text(path.read_text().replace(Sweep.load(NAME, str(ended)).trial.data, "/nowhere"))
    assert run(monkeypatch, "--name", NAME, "--storage", ended) == 0
    page = Page((ended / NAME / "report.html").read_text())
    assert "No heatmaps: " in page.text
    assert "/nowhere" in page.text
    assert len(page.sources) == 3


def test_a_sweep_that_has_not_ended_is_one_line(ended, monkeypatch, capsys):
    (ended / NAME / "result.json").unlink()
    for name, words in ((NAME, "no result yet"), ("other", f"it has {NAME}")):
        assert run(monkeypatch, "--name", name, "--storage", ended) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ")
        assert words in err
        assert err.count("\n") == 1


def test_every_trial_is_pickable_or_says_why_not(ended):
    result = SweepResult.load(NAME, str(ended))
    why = {row.trial_id: reason.partition(":")[0] for row, reason in excluded(result)}
    assert why == {
        "l2_30": "too inaccurate", "tv_1": "stopped early", "tv_2": "diverged", "cor_1": "failed"
    }  # fmt: skip
    without = dataclasses.replace(result, trials=[row for row in result.trials if row.regularizer != "none"])
    assert len(excluded(without)) == len(without.trials)
    assert without.pick is None
    assert "no pick" in verdict(without)[0]


def test_a_sweep_of_which_nothing_finished_has_a_report_too(ended):
    result = SweepResult.load(NAME, str(ended))
    failed = [dataclasses.replace(row, status="failed", checkpoint="") for row in result.trials]
    nothing = dataclasses.replace(result, trials=failed, finalists=[])
    text = Page(report_page(nothing, *figures(nothing))).text
    assert "No heatmaps: no trial finished" in text
    assert "no pick" in text


def test_the_page_in_mlflow_has_the_verdict_and_the_best_trials(ended):
    result = SweepResult.load(NAME, str(ended))
    text = description(result)
    assert text.startswith("Pick: l2, trial l2_3")
    assert "| l2 | 3 | 89.0 | 40.0 | 89.0 | 40.0 | finished | l2_3 |" in text.splitlines()
    many = dataclasses.replace(result, trials=result.trials * 100)
    assert len(description(many)) < 8000, "as long as MLflow's tags may be"


def test_every_figure_is_a_picture_too_and_importances_are_told(ended):
    result = dataclasses.replace(
        SweepResult.load(NAME, str(ended)), importances={"weight_l2": 0.75, "regularizer": 0.25}
    )
    content, drawn = write_report(result, str(ended / "here.html"))
    assert (ended / "here.html").read_text() == content
    assert set(drawn) == {"accuracies", "responses", "intervals", "heatmaps-0"}
    text = "".join(Page((ended / "here.html").read_text()).text.split())
    assert "weight_l20.75regularizer0.25" in text


def test_the_verdict_says_whether_intervals_overlap(ended):
    result = SweepResult.load(NAME, str(ended))
    # t(0.975, 1) = 12.706: two values 0.01 apart have an interval of ± 0.0635 around their mean.
    assert "lie apart" in verdict(result)[-1]
    close = json.loads(json.dumps(result.finalists).replace("0.41", "0.1"))
    close[1]["figures"]["test/robust_accuracy"]["interval"] = [0.1, 0.5]
    assert "overlap" in verdict(dataclasses.replace(result, finalists=close))[-1]
    only = [row for row in result.trials if row.regularizer == "none"]
    assert "No penalty" in verdict(dataclasses.replace(result, trials=only))[-1]


def test_settings_name_what_the_trials_shared(ended):
    shared = dict(settings(SweepResult.load(NAME, str(ended))))
    assert shared["epochs"] == 2
    assert shared["regularizers"] == "l2, tv, cor, mse"
    assert "weight" not in shared  # a trial's own
    assert "tracking_uri" not in shared


def test_no_two_regularizers_look_alike(monkeypatch):
    """Nor those that a user adds."""
    for number in range(20):
        monkeypatch.setitem(REGULARIZERS, f"own_{number}", REGULARIZERS["l2"])
    looks = [plots.look(name) for name in REGULARIZERS]
    shapes = {(look["marker"], look.get("markerfacecolor") == "white", look.get("fillstyle")) for look in looks}
    assert len(shapes) == len(REGULARIZERS), "without colors too"
    for look in looks:
        Line2D([], [], **look)


def test_figures_hold_every_regularizer_and_only_what_finished(ended):
    result = SweepResult.load(NAME, str(ended))
    (axes,) = plots.accuracies(result).axes
    points = {(round(x), round(y)) for line in axes.lines for x, y in zip(*line.get_data(), strict=True) if y > 1}
    assert {(90, 10), (89, 40), (50, 60)} == points
    panels = plots.responses(result).axes
    assert [panel.get_title(loc="left") for panel in panels if panel.axison] == ["l2", "tv", "cor", "mse"]
    figure = plots.intervals(result)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["none", "l2"]
    with Image.open(io.BytesIO(plots.image(figure, "png"))) as picture:
        assert picture.width == 5 * 150
    first, second = (plots.image(plots.intervals(result), "svg") for _ in range(2))
    assert first == second, "the same figure is the same file"
