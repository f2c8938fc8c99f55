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
    assert importances(study(FEWEST - 1, narrow)) == {}
    assert importances(study(FEWEST, narrow))
