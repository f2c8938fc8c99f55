"""Which running trials the rule is said to refuse."""

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from sweeps.rule_stopping import Share, images_needed, outdone, refused, surely_below

DROP = 0.02


def refusals(true, baseline, images, rounds=4000, room=1.0):
    draw = np.random.default_rng(0)
    trials, bases = draw.binomial(images, true, rounds), draw.binomial(images, baseline, rounds)
    pairs = zip(trials, bases, strict=True)
    return np.mean([refused(Share(a / images, images), Share(b / images, images), DROP, room=room) for a, b in pairs])


@pytest.mark.parametrize("images", [32, 256, 2500])
@pytest.mark.parametrize("baseline", [0.6, 0.86, 0.98])
def test_a_trial_right_at_the_limit_is_rarely_stopped(baseline, images):
    """In one of 40 cases; six standard errors of a share of 4,000, and Newcombe's interval is not quite exact."""
    assert refusals(baseline - DROP, baseline, images) < 0.025 + 0.015


def test_a_ruined_network_is_stopped_on_few_images():
    assert refused(Share(0.127, 100), Share(0.86, 100), DROP)
    assert refused(Share(0.127, 32), Share(0.86, 100), DROP)


def test_robust_accuracy_of_zero_is_no_reason():
    assert not refused(Share(0.86, 300), Share(0.86, 300), DROP)
    assert not outdone(Share(0.0, 32), Share(0.04, 256), Share(0.05, 256))


def test_an_early_loss_may_be_made_good():
    trial, baseline = Share(0.815, 5000), Share(0.86, 5000)
    assert refused(trial, baseline, DROP, room=1.0)
    assert not refused(trial, baseline, DROP, room=0.5)
    assert refused(Share(0.78, 5000), baseline, DROP, room=0.5)


def test_an_early_gain_may_double():
    baseline, best = Share(0.04, 256), Share(0.40, 256)
    assert outdone(Share(0.06, 256), baseline, best)
    assert not outdone(Share(0.25, 256), baseline, best)
    assert outdone(Share(0.25, 256), baseline, best, room=1.0)
    assert not outdone(Share(0.06, 8), baseline, best), "eight images say too little"


def test_a_best_trial_no_better_than_the_baseline_outdoes_nothing():
    assert not outdone(Share(0.0, 5000), Share(0.2, 5000), Share(0.1, 5000))


def test_more_confidence_needs_more_distance():
    a, b = Share(0.80, 500), Share(0.85, 500)
    assert surely_below(a, b, confidence=0.9)
    assert not surely_below(a, b, confidence=0.999)
    assert not surely_below(b, a)


def test_images_needed_find_what_they_promise():
    """The power that was asked for, exactly; a known limit has no noise of its own."""
    for limit, distance in ((0.84, 0.05), (0.84, 0.1), (0.5, 0.1)):
        images = images_needed(limit, distance)
        counts, known = np.arange(images + 1), Share(limit, 10**8)
        found = [surely_below(Share(count / images, images), known) for count in counts]
        assert binom.pmf(counts, images, limit - distance) @ found == pytest.approx(0.8, abs=0.05)
    assert images_needed(0.84, 0.02) > 5 * images_needed(0.84, 0.05)


@pytest.mark.parametrize(("successes", "images"), [(0, 32), (5, 32), (256, 256), (215, 256)])
def test_bounds_are_those_of_scipy(successes, images):
    expected = binomtest(successes, images).proportion_ci(0.95, "wilson")
    assert Share(successes / images, images).bounds(0.975) == pytest.approx((expected.low, expected.high), abs=1e-12)
