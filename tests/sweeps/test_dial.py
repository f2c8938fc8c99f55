"""Which strengths the search by the dial proposes."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeps.dial import Baseline, Dial, Measured, allocate

LOW, HIGH = 0.1, 1000.0
BASELINE = Baseline(accuracy=0.856, robust_accuracy=0.04, images=5000, max_accuracy_drop=0.02)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def curves(middle, slope=2.5, fades=math.inf):
    """Accuracy and robust accuracy along log10 strength, nothing of them by chance."""

    def measure(strength):
        x = math.log10(strength)
        accuracy = 0.1 + 0.756 * sigmoid(-slope * (x - middle))
        share = 0.05 + 0.6 * sigmoid(2 * (x - middle + 1))
        return accuracy, accuracy * share * sigmoid(-6 * (x - fades))

    return measure


def trial(strength, accuracy, robust, images=5000, attacked=256, **rest):
    return Measured(
        strength=strength, accuracy=accuracy, robust_accuracy=robust, images=images, attacked=attacked, **rest
    )


def search(measure, count, baseline=BASELINE):
    """That many trials, one after the other."""
    trials = ()
    for _ in range(count):
        strength = Dial(baseline, LOW, HIGH, trials, images=5000).propose()
        trials += (trial(strength, *measure(strength)),)
    return trials


def best_of(trials):
    return max((t.robust_accuracy for t in trials if t.accuracy >= BASELINE.limit), default=None)


def optimum(measure):
    """Strength and robust accuracy that the rule would pick if it knew everything."""
    points = [(10**x, *measure(10**x)) for x in np.linspace(-1, 3, 2001)]
    return max(((s, r) for s, a, r in points if a >= BASELINE.limit), key=lambda point: point[1])


@pytest.mark.parametrize(
    ("middle", "slope"), [(2, 1.5), (3, 1.5), (1, 2.5), (2, 2.5), (3.5, 2.5), (0.5, 5), (2.4, 5), (0, 10), (3, 10)]
)
def test_it_closes_in_on_the_strength_at_the_limit(middle, slope):
    measure = curves(middle, slope)
    strength, robust = optimum(measure)
    trials = search(measure, 6)
    admissible = [t.strength for t in trials if t.accuracy >= BASELINE.limit]
    assert math.log10(strength) - math.log10(max(admissible)) < 0.3
    assert best_of(trials) > 0.85 * robust


def test_it_beats_as_many_strengths_of_a_grid():
    """On the average over where the limit lies, with a third of the trials."""
    grid = [10 ** (-1 + 4 * (number + 0.5) / 15) for number in range(15)]
    own, others = [], []
    for middle in np.linspace(0.9, 3, 12):
        measure = curves(middle)
        own.append(best_of(search(measure, 5)))
        others.append(best_of([trial(s, *measure(s)) for s in grid]))
    assert np.mean(own) > np.mean(others)


def test_where_everything_is_admissible_it_goes_to_the_top():
    trials = search(curves(7.0), 4)
    assert max(t.strength for t in trials) == pytest.approx(HIGH)


def test_where_nothing_is_admissible_it_goes_to_the_bottom():
    trials = search(curves(-3.0), 3)
    assert min(t.strength for t in trials) < 1.2 * LOW, "within a step of the grid"


@pytest.mark.parametrize("fades", [-0.3, 0.0, 1.0])
def test_it_finds_a_peak_of_robustness_inside_the_limit(fades):
    measure = curves(3.0, slope=3.5, fades=fades)
    strength, robust = optimum(measure)
    assert measure(5 * strength)[0] >= BASELINE.limit, "the peak is not at the limit"
    assert best_of(search(measure, 6)) > 0.95 * robust


@pytest.mark.parametrize("images", [100, 1000, 10_000])
def test_what_it_takes_for_best_lies_inside_the_limit(images):
    measure = curves(2.0)
    dial = Dial(BASELINE, LOW, HIGH, search(measure, 5), images=images)
    best = 10 ** dial.grid[np.argmax(dial.admitted * dial.robust)]
    assert BASELINE.limit < measure(best)[0] < BASELINE.limit + 0.015


def test_a_trial_that_diverged_counts_as_too_strong():
    first = Dial(BASELINE, LOW, HIGH).propose()
    for accuracy in (math.nan, 0.0):  # the loss was no number any more; the trainer reports 0 then
        assert Dial(BASELINE, LOW, HIGH, (trial(first, accuracy, accuracy),)).propose() < first


def test_one_accident_does_not_outweigh_the_other_trials():
    measure = curves(2.5)
    good = tuple(trial(s, *measure(s)) for s in (3.0, 10.0, 20.0))
    for accident in (trial(1.0, math.nan, math.nan), trial(1.0, 0.6, 0.05)):
        assert Dial(BASELINE, LOW, HIGH, (*good, accident), images=5000).propose() > 10


def test_a_trial_that_was_stopped_early_weighs_less():
    """At an early epoch a penalty may have cost more than it will in the end."""
    whole, early = (
        Dial(BASELINE, LOW, HIGH, (trial(10.0, 0.8, 0.2, progress=progress),), images=5000) for progress in (1.0, 0.25)
    )
    at = np.argmin(abs(whole.grid - 1))
    assert whole.admitted[at] < early.admitted[at] < 0.5
    assert early.best == BASELINE.robust_accuracy, "the rule picks from finished trials"


@pytest.mark.parametrize("trials", [(), ("measured",)])
def test_trials_that_run_are_not_proposed_again(trials):
    measure = curves(2.0)
    ended = tuple(trial(10.0, *measure(10.0)) for _ in trials)
    pending: tuple[float, ...] = ()
    for _ in range(8):
        pending += (Dial(BASELINE, LOW, HIGH, ended, pending).propose(),)
    logs = sorted(math.log10(strength) for strength in pending)
    assert min(np.diff(logs)) > 0.05


def test_trials_at_the_same_time_spread():
    """Four at once leave no larger part of the range unknown than half of it."""
    pending: tuple[float, ...] = ()
    for _ in range(4):
        pending += (Dial(BASELINE, LOW, HIGH, (), pending).propose(),)
    logs = [-1, *sorted(math.log10(strength) for strength in pending), 3]
    assert max(np.diff(logs)) < 2


shares = st.floats(0, 1) | st.just(math.nan)
anything = st.builds(
    trial,
    st.floats(LOW, HIGH),
    shares,
    shares,
    images=st.integers(1, 10_000),
    attacked=st.integers(1, 500),
    progress=st.sampled_from([0.25, 0.5, 1.0]),
)


@settings(max_examples=60, deadline=None)
@given(
    trials=st.lists(anything, max_size=10).map(tuple),
    pending=st.lists(st.floats(LOW, HIGH), max_size=4).map(tuple),
    accuracy=st.floats(0, 1),
    robust=st.floats(0, 1),
    drop=st.floats(0, 1),
)
def test_whatever_was_measured_the_proposal_lies_in_the_range(trials, pending, accuracy, robust, drop):
    dial = Dial(Baseline(accuracy, robust, 500, drop), LOW, HIGH, trials, pending)
    strength = dial.propose()
    assert LOW <= strength <= HIGH
    assert isinstance(strength, float)
    assert strength == Dial(Baseline(accuracy, robust, 500, drop), LOW, HIGH, trials, pending).propose()


def test_more_trials_than_the_range_has_room_for():
    trials = tuple(trial(10**x, 0.85, 0.1) for x in np.linspace(-1, 3, 200))
    assert LOW <= Dial(BASELINE, LOW, HIGH, trials).propose() <= HIGH


def test_the_order_of_the_trials_makes_no_difference():
    trials = search(curves(2.0), 4)
    assert Dial(BASELINE, LOW, HIGH, trials[::-1]).propose() == Dial(BASELINE, LOW, HIGH, trials).propose()


def test_the_baseline_is_the_mean_of_the_trials_that_finished():
    trials = (
        trial(1.0, 0.84, 0.02),
        trial(1.0, 0.86, 0.04),
        trial(1.0, 0.10, 0.90, progress=0.25),
        trial(1.0, math.nan, math.nan),
    )
    baseline = Baseline.of(trials, 0.02)
    assert baseline.accuracy == pytest.approx(0.85)
    assert baseline.robust_accuracy == pytest.approx(0.03)
    assert baseline.limit == pytest.approx(0.83)
    assert baseline.images == 10_000


def test_every_regularizer_has_two_trials_before_any_has_three():
    dials = {name: Dial(BASELINE, LOW, HIGH) for name in "abc"}
    asked = []
    for _ in range(6):
        name = allocate(dials)
        asked.append(name)
        pending = (*dials[name].pending, dials[name].propose())
        dials[name] = Dial(BASELINE, LOW, HIGH, (), pending)
    assert sorted(asked) == ["a", "a", "b", "b", "c", "c"]


def test_a_regularizer_whose_first_trial_went_wrong_has_a_second():
    dials = {
        "promising": Dial(BASELINE, LOW, HIGH, search(curves(2.0), 2), images=5000),
        "wrong": Dial(BASELINE, LOW, HIGH, (trial(0.1, math.nan, math.nan),)),
    }
    assert allocate(dials) == "wrong"


def test_trials_go_to_the_regularizer_that_can_still_win():
    """Not to one that ruins every network, nor to one that has no effect, nor where nothing is left to find."""
    promising = search(curves(2.0), 2)
    dials = {
        "ruins": (trial(10.0, 0.1, 0.1), trial(0.1, 0.1, 0.1)),
        "nothing": (trial(10.0, 0.856, 0.04), trial(1000.0, 0.856, 0.04)),
        "promising": promising,
    }
    assert allocate({name: Dial(BASELINE, LOW, HIGH, trials, images=5000) for name, trials in dials.items()}) == (
        "promising"
    )
