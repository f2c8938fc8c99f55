"""How sure the pick is: intervals that are as wide as they should be, and one sentence that says them."""

import dataclasses
import math

import numpy as np
import pytest

from sweeps.comparison import Comparison, _lead, compare, paired_intervals, verdict
from sweeps.finalists import Finalist, as_dicts
from sweeps.ranking import Row
from sweeps.results import SweepResult, ranked
from sweeps.settings import Sweep
from trainer.config import Trial
from trainer.trial_log import TrialLog


def text(bits):
    return ["".join(map(str, row)) for row in np.asarray(bits).astype(int)]


def paired_interval(first, second):
    (found,) = paired_intervals([first, second])
    return found


def half(interval):
    return (interval[1] - interval[0]) / 2


@pytest.mark.parametrize("seeds", [1, 3])
def test_nothing_is_sure_of_few_images(seeds):
    """19 images on which two models never differ say no more than that they rarely do."""
    same = ["1" * 10 + "0" * 9] * seeds
    difference, interval = paired_interval(same, same)
    assert difference == 0
    assert half(interval) > 0.05
    assert half(paired_interval(["10" * 500] * seeds, ["10" * 500] * seeds)[1]) < 0.01


def test_one_seed_is_agresti_and_mins_interval():
    won, lost, images = 12, 5, 100
    first = "1" * won + "0" * (images - won)
    second = "0" * (images - lost) + "1" * lost
    difference, interval = paired_interval([first], [second])
    assert difference == pytest.approx(0.07)
    error = math.sqrt((won + lost + 1) - (won - lost) ** 2 / (images + 2)) / (images + 2)
    assert half(interval) == pytest.approx(1.96 * error, rel=0.02)  # the quantile of Student's t of 101 is 1.983


def test_seeds_that_disagree_make_it_wider():
    images = 1000
    calm = paired_interval(["1" * 500 + "0" * 500] * 3, ["1" * 400 + "0" * 600] * 3)
    first = ["1" * hits + "0" * (images - hits) for hits in (400, 500, 600)]
    wild = paired_interval(first, ["1" * 400 + "0" * 600] * 3)
    assert calm[0] == wild[0] == pytest.approx(0.1)
    assert calm[1][0] > 0.05, "seeds that never disagree make three of them as good as many"
    assert wild[1][0] < 0 < wild[1][1], "three seeds from 0 to 20 points apart are a tie"


def test_it_is_paired_and_corrected():
    rng = np.random.default_rng(0)
    hard = rng.random(400) < 0.5
    first, second = (np.where(rng.random(400) < 0.05, ~hard, hard) for _ in range(2))
    (_, paired), (_, apart) = (
        paired_interval(text([first]), text([other])) for other in (second, rng.permutation(second))
    )
    assert half(paired) < half(apart) / 2
    (_, corrected), *_ = paired_intervals([text([first]), *[text([second])] * 5])
    assert half(corrected) == pytest.approx(1.31 * half(paired), rel=0.02), "the quantile of 0.995 over that of 0.975"


@pytest.mark.parametrize(
    ("images", "seeds", "spread"), [(20, 1, 0.0), (180, 1, 0.0), (20, 3, 0.3), (180, 3, 0.5), (180, 3, 0.0)]
)
@pytest.mark.parametrize("models", [2, 4])
def test_it_covers_the_truth_as_often_as_it_says(images, seeds, spread, models):
    """Models of equal worth: images differ in difficulty, and each training in its luck, which is its own."""
    rng, covered, runs = np.random.default_rng(1), 0, 400
    for _ in range(runs):
        hardness = rng.normal(0, 2, images)
        outcomes = []
        for _ in range(models):
            luck = rng.normal(0, spread, (seeds, 1))
            outcomes.append(text(rng.random((seeds, images)) < 1 / (1 + np.exp(hardness + luck))))
        covered += all(low <= 0 <= high for _, (low, high) in paired_intervals(outcomes))
    assert covered / runs > 0.93


def row(name, seed, robust, accuracy=0.9, trial_id=None):
    metrics = {f"{split}/{key}": value for split in ("val", "test")
               for key, value in (("accuracy", accuracy), ("robust_accuracy", robust))}  # fmt: skip
    return Row(
        trial_id=trial_id or f"{name}_{seed}", regularizer=name, weight=float(name != "none"), strength=2.0, seed=seed,
        status="finished", accuracy=accuracy, robust_accuracy=robust, heatmap_ssim=0.0, heatmap_correlation=0.0,
        checkpoint="", metrics=metrics,
    )  # fmt: skip


@pytest.fixture
def sweep(tmp_path):
    return Sweep(name="s", storage=str(tmp_path), trial=Trial(data="nowhere", model="resnet8", epochs=1))


ROBUST = {"none": 0.1, "l2": 0.52, "tv": 0.50, "cor": 0.9}
SEARCH = [row(name, 0, robust, 0.5 if name == "cor" else 0.9) for name, robust in ROBUST.items()]


def log(sweep, rows, images=200):
    """What their workers would have written; which images withstand is a matter of the image before all."""
    for one in rows:
        hits = round(one.robust_accuracy * images)
        folder = f"{sweep.trials_folder}/{one.trial_id}"
        TrialLog(folder, "d").report({}, 1, {"val": "", "test": "1" * hits + "0" * (images - hits)})


def result(sweep, finalists, compared):
    return SweepResult(
        sweep=sweep, trials=ranked(sweep, SEARCH), finalists=as_dicts(finalists), units={}, comparisons=compared
    )


def test_trials_of_the_search_are_compared_on_their_images(sweep):
    log(sweep, SEARCH)
    found = compare(sweep, SEARCH, [])
    assert [(one.regularizer, one.images, one.seeds, one.comparisons) for one in found] == [
        ("tv", 200, 1, 2), ("none", 200, 1, 2)
    ]  # fmt: skip
    assert [one.tie for one in found] == [True, False]
    assert verdict(result(sweep, [], found)) == (
        "Pick: l2, trial l2_0: strength 2, robust accuracy 52.0 % on test, of one training. It leads the runner-up tv "
        f"by 2.0 points, 95 % interval {100 * found[0].interval[0]:+.1f} to {100 * found[0].interval[1]:+.1f}: a tie; "
        f"the baseline by 42.0 points, 95 % interval {100 * found[1].interval[0]:+.1f} to "
        f"{100 * found[1].interval[1]:+.1f} (200 images, one seed, whose luck is not in the interval, corrected for 2 "
        "comparisons)."
    )


def again(name, robust, seeds=(7, 8, 9)):
    repetitions = tuple(row(name, seed, value) for seed, value in zip(seeds, robust, strict=True))
    return Finalist(regularizer=name, weight=1.0, strength=2.0, chosen=f"{name}_0", repetitions=repetitions)


def test_finalists_are_compared_seed_by_seed(sweep):
    finalists = [again("none", (0.1, 0.12, 0.1)), again("l2", (0.4, 0.42, 0.44)), again("tv", (0.6, 0.62, 0.61))]
    for one in finalists:
        log(sweep, one.repetitions)
    found = compare(sweep, SEARCH, finalists)
    assert [(one.regularizer, one.seeds, one.tie) for one in found] == [("l2", 3, False), ("none", 3, False)]
    assert found[0].difference == pytest.approx(0.19)
    said = verdict(result(sweep, finalists, found))
    assert said.startswith("Pick: tv, trial tv_0: strength 2, robust accuracy 61.0 % on test, the mean of 3 new seeds.")
    assert "200 images, 3 seeds, corrected for 2 comparisons" in said
    shuffled = dataclasses.replace(finalists[1], repetitions=finalists[1].repetitions[::-1])
    assert compare(sweep, SEARCH, [finalists[0], shuffled, finalists[2]]) == found, "by seed, not by place"
    fewer = dataclasses.replace(finalists[1], repetitions=finalists[1].repetitions[:2])
    assert compare(sweep, SEARCH, [finalists[0], fewer, finalists[2]])[0].seeds == 2, "those that all have"


def test_without_a_record_of_the_images_nothing_is_claimed(sweep):
    assert compare(sweep, SEARCH, []) == []
    assert verdict(result(sweep, [], [])).endswith("of one training.")
    assert compare(sweep, SEARCH[1:], []) == []


def test_a_pick_that_is_behind_on_test_trails():
    behind, ahead = (
        Comparison(regularizer=name, difference=d, interval=(d - 0.02, d + 0.03), images=100, seeds=3, comparisons=2)
        for name, d in (("tv", -0.01), ("none", 0.04))
    )
    assert _lead(behind, None) == "It trails the runner-up tv by 1.0 points, 95 % interval -2.0 to +3.0: a tie"
    assert _lead(ahead, behind) == "it leads the baseline by 4.0 points, 95 % interval +2.0 to +7.0"
    assert _lead(ahead, ahead) == "the baseline by 4.0 points, 95 % interval +2.0 to +7.0"
