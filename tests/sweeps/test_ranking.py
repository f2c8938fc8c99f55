"""The ranking, the named rule and the front."""

import csv
import dataclasses
import io
import re

import pytest
from rich.console import Console

from sweeps.finalists import choose
from sweeps.ranking import Row, as_csv, as_dict, as_text, baseline, least_accuracy, pareto, pick, rank, reason, table


def row(name, accuracy, robust, status="finished"):
    return Row(
        trial_id=f"id_{name}",
        regularizer=name,
        weight=0.0,
        strength=0.0,
        seed=0,
        status=status,
        accuracy=accuracy,
        robust_accuracy=robust,
        heatmap_ssim=0.0,
        heatmap_correlation=0.0,
        checkpoint="",
    )


ROWS = [row("none", 0.90, 0.1), row("l2", 0.885, 0.5), row("tv", 0.80, 0.7), row("cor", 0.95, 0.9, "stopped")]


def test_pick_is_the_most_robust_within_the_allowed_drop():
    assert pick(ROWS, 0.02).regularizer == "l2"
    assert pick(ROWS, 0.2).regularizer == "tv"
    assert pick(ROWS, 0.001).regularizer == "none"


def test_a_pick_that_is_unbeaten_is_marked_as_both():
    lines = [line.split() for line in as_text([*ROWS, row("mse", 0.7, 0.6)], ROWS[1]).splitlines()]
    marks = {words[-8]: [words[0] == "→", words[-4][-1] == "*"] for words in lines if len(words) > 8}
    one = {"l2": [True, True], "none": [False, True], "tv": [False, True], "mse": [False, False]}
    assert {name: marks[name] for name in one} == one


def test_the_limit_is_the_mean_of_the_baselines_not_the_luckiest():
    """With the luckiest, at 0.860, l2 would be too inaccurate."""
    rows = [
        dataclasses.replace(row("none", a, 0.02), trial_id=f"none_{a}") for a in (0.849, 0.852, 0.854, 0.856, 0.860)
    ]
    rows += [row("l2", 0.839, 0.30), row("ssim", 0.8405, 0.05)]
    assert pick(rows, 0.02).regularizer == "l2"
    assert baseline(rows).accuracy == pytest.approx(0.8542)
    assert "5 trials, mean accuracy 85.4 %" in reason(rows, 0.02)


def test_a_limit_of_nothing_admits_trials_as_accurate_as_the_baselines():
    """The mean of three equal numbers may be rounded to a larger one: of 301/359 it is."""
    same = 301 / 359
    rows = [dataclasses.replace(row("none", same, 0.1), trial_id=str(n)) for n in range(3)] + [row("l2", same, 0.3)]
    assert pick(rows, 0.0).regularizer == "l2"


def finalist(name, accuracies, robust):
    figures = {"val/accuracy": accuracies, "val/robust_accuracy": robust}
    summaries = {key: {"mean": sum(values) / len(values), "values": values} for key, values in figures.items()}
    return {"regularizer": name, "chosen": f"id_{name}", "trials": ["x"] * len(accuracies), "figures": summaries}


def test_the_pick_goes_by_means_over_repetitions():
    rows = [row("none", 0.90, 0.1), row("l2", 0.89, 0.5), row("tv", 0.89, 0.4), row("cor", 0.9, 0.3)]
    none = finalist("none", [0.90, 0.90], [0.1, 0.1])
    lucky = [none, finalist("l2", [0.89, 0.89], [0.3, 0.2]), finalist("tv", [0.89, 0.89], [0.35, 0.37])]
    assert pick(rows, 0.02).regularizer == "l2"
    assert pick(rows, 0.02, lucky).regularizer == "tv", "cor was not repeated, l2 was lucky once"
    inaccurate = [none, lucky[1], finalist("tv", [0.89, 0.85], [0.35, 0.37])]
    assert pick(rows, 0.02, inaccurate).regularizer == "l2"
    assert pick(rows, 0.02, [none, *(finalist(n, [0.8], [0.9]) for n in ("l2", "tv"))]).regularizer == "none"
    failed = [none, {"regularizer": "l2", "chosen": "id_l2", "trials": [], "figures": {}}]
    assert pick(rows, 0.02, failed).regularizer == "l2", "by the search, where no repetition finished"
    better = [finalist("none", [0.95, 0.95], [0.1, 0.1]), *lucky[1:]]
    assert pick(rows, 0.02, better).regularizer == "none", "repetitions of the baseline count for the limit"


def test_a_spreadsheet_has_every_trial_with_all_that_was_measured():
    measured = dataclasses.replace(ROWS[0], weight=1e-7, metrics={"val/accuracy": 0.9, "test/accuracy": 1 / 3})
    lines = list(csv.DictReader(io.StringIO(as_csv([measured, *ROWS[1:]]))))
    assert [line["trial_id"] for line in lines] == ["id_tv", "id_l2", "id_none", "id_cor"]
    assert float(lines[2]["test/accuracy"]) == 1 / 3
    assert float(lines[2]["weight"]) == 1e-7
    assert lines[0]["test/accuracy"] == ""
    assert lines[3]["status"] == "stopped"


def test_what_a_looser_rule_would_pick_is_said_with_the_rule():
    words = reason(ROWS, 0.02)
    assert words.startswith("The rule: best robust accuracy")
    assert words.endswith(
        "More robust in the search, but less accurate than that: tv, trial id_tv, robust 70.0 %; --resume "
        "--max-accuracy-drop 0.1 would pick it."
    )
    assert pick(ROWS, 0.10).regularizer == "tv"
    close = [row("none", 0.9, 0.1), row("l2", 0.9 - 1 / 30, 0.5)]
    (needed,) = re.findall(r"--max-accuracy-drop ([\d.]+)", reason(close, 0.02))
    assert pick(close, float(needed)).regularizer == "l2", "rounded up"
    assert "More robust" not in reason(ROWS, 0.2)


def test_without_a_finished_baseline_nothing_is_picked():
    assert pick([row("none", 0.9, 0.1, "failed"), row("l2", 0.9, 0.5)], 0.02) is None
    assert as_dict([], None, 0.02)["pick"] is None


def test_a_stopped_trial_never_wins_by_its_low_budget_value():
    rows = [row("none", 0.9, 0.1), row("l2", 0.9, 0.2), row("cor", 1.0, 1.0, "stopped"), row("tv", 1, 1, "diverged")]
    assert pick(rows, 0.02).regularizer == "l2"
    assert pareto(rows) == ["id_l2"]
    assert [r.regularizer for r in rank(rows)[:2]] == ["l2", "none"]
    best_baseline_stopped = [*rows, row("none", 1.0, 0.9, "stopped")]
    assert pick(best_baseline_stopped, 0.02).regularizer == "l2"


def test_the_reason_says_rule_split_and_baselines():
    again = dataclasses.replace(row("none", 0.89, 0.2), trial_id="worse_none")
    text = reason([*ROWS, again], 0.02)
    for words in ("best robust accuracy on val", "2 percentage points", "2 trials, mean accuracy 89.5 %"):
        assert words in text
    assert "no pick" in reason([], 0.02)
    result = as_dict(ROWS, pick(ROWS, 0.02), 0.02)
    assert (result["pick"], result["split"]) == ("id_l2", "val")
    assert result["baseline"] == {"accuracy": 0.9, "robust_accuracy": 0.1, "trials": 1}


def test_the_limit_is_that_of_the_mean_baseline_and_not_of_the_luckiest():
    seeds = [dataclasses.replace(row("none", a, 0.1), trial_id=f"none_{a}") for a in (0.92, 0.89, 0.89)]
    rows = [*seeds, row("none", 0.1, 0.9, "diverged"), row("l2", 0.885, 0.3), row("tv", 0.875, 0.5)]
    assert least_accuracy(rows, 0.02) == pytest.approx(0.88)
    assert pick(rows, 0.02).regularizer == "l2"
    assert [found.regularizer for found in choose(rows, 0.02)][:2] == ["l2", "none"]
    same = [row("none", 0.1 + 0.2, 0.1)] * 3 + [row("l2", 0.3, 0.3)]
    assert pick(same, 0.0).regularizer == "l2", "rounding of the mean"


def test_unfinished_trials_come_last():
    assert [r.regularizer for r in rank(ROWS)] == ["tv", "l2", "none", "cor"]


def test_front_holds_the_unbeaten():
    rows = [*ROWS, row("mse", 0.80, 0.6)]
    assert pareto(rows) == ["id_none", "id_l2", "id_tv"]


@pytest.mark.parametrize("twins", [2, 3])
def test_equal_trials_do_not_beat_each_other(twins):
    rows = [row(f"r{i}", 0.5, 0.5) for i in range(twins)]
    assert len(pareto(rows)) == twins


def test_table_fits_a_narrow_terminal():
    console = Console(width=80, file=io.StringIO())
    rows = [row("tv_abs_unscaled", 1.0, 1.0), row("none", 0.9, 0.123, "diverged")]
    changes = {"trial_id": "1a2b3c4d", "weight": 1.23e-05, "strength": 1e3, "heatmap_ssim": -0.1}
    rows = [dataclasses.replace(r, **changes) for r in rows]
    console.print(table(rows, rows[0]))
    text = console.file.getvalue()
    for figure in ("1a2b3c4d", "1.23e-05", "tv_abs_unscaled", "100.0", "12.3", "-0.100", "diverged", "strength"):
        assert figure in text
    assert "…" not in text
