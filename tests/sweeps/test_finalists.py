"""The best weights, trained again: which, how often, and what their figures say."""

import dataclasses
import io
import math
import uuid
from pathlib import Path

import pytest
from rich.console import Console

from sweeps import finalists
from sweeps.events import TrialEnded, TrialStarted, open_log
from sweeps.ranking import Row
from sweeps.settings import Sweep
from trainer.config import Trial

IMAGES = {f"{split}/{name}": 100.0 for split in ("val", "test") for name in ("examples", "attacked_examples")}


def row(name, weight, accuracy, robust, status="finished", seed=0):
    return Row(
        trial_id=f"{name}_{weight}_{seed}", regularizer=name, weight=weight, strength=weight, seed=seed, status=status,
        accuracy=accuracy, robust_accuracy=robust, heatmap_ssim=0.0, heatmap_correlation=0.0, checkpoint="",
        metrics=dict.fromkeys(finalists.FIGURES, accuracy) | IMAGES,
    )  # fmt: skip


ROWS = [
    row("none", 0.0, 0.90, 0.1),
    row("none", 0.0, 0.89, 0.2, seed=1),
    row("l2", 1.0, 0.89, 0.3),
    row("l2", 2.0, 0.50, 0.8, seed=1),  # more robust, but not accurate enough for the rule
    row("tv", 1.0, 0.40, 0.5),
    row("tv", 2.0, 0.30, 0.6, seed=1),
    row("cor", 1.0, 0.99, 0.9, "stopped"),
]


@pytest.fixture
def sweep(tmp_path):
    sweep = Sweep(
        name="s", storage=str(tmp_path), trial=Trial(data=str(tmp_path), model="resnet8", seed=5),
        regularizers=("l2", "tv", "cor"), trials_per_regularizer=2, seeds=3,
    )  # fmt: skip
    Path(sweep.folder).mkdir()
    return sweep


def run(sweep, configs, error="", accuracy=0.9):
    """Log an outcome for every configuration, as a run of Tune would."""
    log = open_log(sweep)
    for config in configs:
        name, seed = config["regularizer"], config["seed"]
        weight = config.get(f"weight_{name}", 0.0)
        trial_id, figures = f"{uuid.uuid4()}", dict.fromkeys(finalists.FIGURES, accuracy) | IMAGES
        log.append(
            TrialStarted(
                trial_id=trial_id, name=name, part=finalists.folder_of(configs), regularizer=name, weight=weight,
                strength=weight, seed=seed, epochs=1, digest="d", repeats=True,
            )
        )  # fmt: skip
        ended = TrialEnded(trial_id=trial_id, error=error, epoch=1, digest="d", metrics=figures)
        log.append(ended)


def test_finalists_are_the_best_finished_weights():
    chosen = finalists.choose(ROWS, 0.02)
    assert [(r.regularizer, r.weight, r.seed) for r in chosen] == [("l2", 1.0, 0), ("none", 0.0, 1), ("tv", 2.0, 1)]
    assert finalists.choose(ROWS, 0.5)[0].weight == 2.0
    assert [r.regularizer for r in finalists.choose(ROWS[2:], 0.02)] == ["l2", "tv"]  # without a baseline too


def missing(sweep, rows=ROWS):
    log = open_log(sweep)
    return finalists.missing(sweep, log, finalists.choose_finalists(sweep, log, rows))


def test_seeds_are_new_and_the_same_for_all(sweep):
    configs = missing(sweep)
    by_name = {name: [c["seed"] for c in configs if c["regularizer"] == name] for name in ("none", "l2", "tv")}
    assert by_name["tv"] == [], "none of its trials is accurate enough"
    assert by_name["none"] == by_name["l2"]
    assert len(set(by_name["none"])) == 3
    assert min(by_name["none"]) > 1000
    assert missing(dataclasses.replace(sweep, seeds=0)) == []
    assert missing(sweep, ROWS[2:]) == [], "without a baseline there is no pick"
    assert missing(sweep, ROWS[:2]) == [], "nor anything to repeat"


MANY = [row("none", 0.0, 0.90, 0.1), row("l2", 2.0, 0.89, 0.8), row("l2", 1.0, 0.9, 0.7), row("tv", 1.0, 0.9, 0.6),
        row("cor", 1.0, 0.9, 0.5), row("mse", 1.0, 0.9, 0.4)]  # fmt: skip


def test_the_best_regularizers_are_repeated_and_the_next_where_one_turns_out_inaccurate(sweep):
    two = dataclasses.replace(sweep, finalists=2)
    first = missing(two, MANY)
    assert [(c["regularizer"], c.get("weight_l2")) for c in first[:3]] == [("none", None), ("l2", 2.0), ("tv", None)]
    assert len(first) == 9
    run(two, [c for c in first if c["regularizer"] != "l2"])
    run(two, [c for c in first if c["regularizer"] == "l2"], accuracy=0.87)
    second = missing(two, MANY)
    assert {(c["regularizer"], c["weight_l2"]) for c in second} == {("l2", 1.0)}, "its weaker one, which is next"
    run(two, second, accuracy=0.87)
    third = missing(two, MANY)
    assert {c["regularizer"] for c in third} == {"cor"}
    run(two, third, accuracy=0.87)
    assert missing(two, MANY) == [], "twice as many as wanted were tried"
    assert two.most_repetitions == 15
    assert len(first) + len(second) + len(third) == 15


def test_only_what_is_missing_is_run_again(sweep):
    first = missing(sweep)
    assert missing(sweep) == first  # interrupted: the same folder of Tune goes on
    run(sweep, first[:4])
    run(sweep, first[4:5], "broken")
    assert missing(sweep) == first[4:]
    run(sweep, first[4:])
    assert missing(sweep) == []
    better = [*ROWS, row("l2", 3.0, 0.9, 0.7, seed=2)]  # of an extension
    new = missing(sweep, better)
    assert {(c["regularizer"], c["weight_l2"]) for c in new} == {("l2", 3.0)}
    assert len(new) == 3
    more = missing(dataclasses.replace(sweep, seeds=4))
    assert len(more) == 2
    assert len({c["seed"] for c in more}) == 1
    gathered = {
        finalist.regularizer: len(finalist.repetitions) for finalist in finalists.gather(sweep, open_log(sweep), better)
    }
    assert gathered == {"l2": 0, "none": 3}


def test_the_interval_is_of_seeds_and_images():
    # t(0.975, 4) = 2.776445; mean 0.3, deviation sqrt(0.025). Of very many images only the seeds are left.
    values = [0.1, 0.2, 0.3, 0.4, 0.5]
    mean, margin = finalists.mean_and_margin(values, 10**9)
    assert mean == pytest.approx(0.3)
    assert margin == pytest.approx(2.776445 * math.sqrt(0.025 / 5), rel=1e-3)
    assert finalists.mean_and_margin(values, 50)[1] > margin
    # Of one value the images alone: 30 of 100, Agresti and Coull's 0.0892 with 1.96.
    assert finalists.mean_and_margin([0.3], 100)[1] == pytest.approx(0.0892, rel=0.03)
    for hits in (0.0, 0.5, 1.0):
        assert finalists.mean_and_margin([hits] * 3, 19)[1] > 0.1, "19 images are never sure"
    assert finalists.mean_and_margin([0.5, 0.5], 0)[1] > 0.4, "nor an unknown number"
    assert math.isnan(finalists.mean_and_margin([], 100)[0])


def test_the_result_says_mean_and_interval_or_nothing(sweep):
    run(sweep, missing(sweep)[:3])  # the baseline twice, l2 once
    found = {
        finalist["regularizer"]: finalist
        for finalist in finalists.as_dicts(finalists.gather(sweep, open_log(sweep), ROWS))
    }
    assert found["l2"]["chosen"] == "l2_1.0_0"
    for name, values in (("none", [0.9, 0.9]), ("l2", [0.9])):
        summary = found[name]["figures"]["test/accuracy"]
        assert (summary["mean"], summary["values"]) == (0.9, values)
        assert 0.8 < summary["interval"][0] < 0.86 < 0.94 < summary["interval"][1] < 1
    assert finalists.as_dicts(finalists.gather(dataclasses.replace(sweep, seeds=0), open_log(sweep), ROWS)) == []


def test_table_fits_a_narrow_terminal():
    rows = tuple(row("tv_abs_unscaled", 1e3, value, value) for value in (0.2, 0.35))
    found = finalists.Finalist(
        regularizer="tv_abs_unscaled", weight=1e3, strength=1e3, chosen="", repetitions=rows
    )  # fmt: skip
    none = finalists.Finalist(regularizer="none", weight=0.0, strength=0.0, chosen="", repetitions=rows[:1])
    empty = finalists.Finalist(regularizer="l2", weight=1.0, strength=1.0, chosen="")
    console = Console(width=80, file=io.StringIO())
    console.print(finalists.table([found, none, empty]))
    text = console.file.getvalue()
    assert text.count("27.5 ± ") == text.count("20.0 ± 7.8") == 4
    for words in ("tv_abs_unscaled", "1e+03", "seeds", "strength", "nan"):
        assert (words in text) == (words != "nan")
    assert "…" not in text
