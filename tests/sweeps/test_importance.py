"""What mattered in a search."""

import math

import optuna
import pytest

from sweeps.importance import FEWEST, importances
from sweeps.search import Space

UNITS = {"l2": 1.0, "tv": 1.0}


def study(trials, robust):
    found = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    space = Space(("none", "l2", "tv"), UNITS)
    for number in range(trials):
        found.enqueue_trial({"regularizer": ("none", "l2", "tv")[number % 3]})
        trial = found.ask()
        space(trial)
        found.tell(trial, robust(trial.params))
    return found


def narrow(params):
    """Of `l2` only strengths near 10 help; those of `tv` all do the same."""
    away = math.log10(params["weight_l2"]) - 1 if "weight_l2" in params else 3
    return 0.1 + 0.5 * math.exp(-(away**2)) + 1e-3 * params.get("weight_tv", 0) % 1e-4


def test_a_weight_whose_good_values_are_few_matters(recwarn):
    found = importances(study(60, narrow))
    assert set(found) == {"regularizer", "weight_l2", "weight_tv"}
    assert sum(found.values()) == pytest.approx(1)
    assert next(iter(found)) == "weight_l2"
    assert found["weight_l2"] > 5 * found["weight_tv"]
    assert not recwarn.list


def test_few_trials_say_nothing():
    assert importances(study(3 * (FEWEST - 1), narrow)) == {}, "of the regularizer alone: it would be 1"
    assert set(importances(study(3 * FEWEST, narrow))) == {"regularizer", "weight_l2", "weight_tv"}


def test_one_trial_of_each_regularizer_says_nothing():
    """However many there are: `weight 0.00` was said of weights that had one trial."""
    found = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    names = ("l2", *(f"r{number}" for number in range(20)))
    space = Space(names, {"l2": 1.0})
    for name in (*names, *["l2"] * FEWEST):
        found.enqueue_trial({"regularizer": name})
        trial = found.ask()
        space(trial)
        found.tell(trial, len(trial.params["regularizer"]) / 10 + trial.params.get("weight_l2", 0.0))
    assert importances(found) == {}


def test_what_too_few_trials_have_is_left_out_of_the_sum():
    found = study(60, narrow)
    of_l2 = {
        "regularizer": optuna.distributions.CategoricalDistribution(["none", "l2", "tv"]),
        "l2.extra": optuna.distributions.FloatDistribution(0.0, 1.0),
    }
    for number in range(FEWEST - 1):
        params = {"regularizer": "l2", "l2.extra": number / FEWEST}
        found.add_trial(optuna.trial.create_trial(params=params, distributions=of_l2, value=number))
    left = importances(found)
    assert "l2.extra" not in left
    assert sum(left.values()) == pytest.approx(1)
