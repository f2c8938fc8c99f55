"""The search space and the durable study, without Ray."""

import dataclasses
import math
from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import TrialState
from ray import cloudpickle

from regularizers import REGULARIZERS
from sweeps.search import METRIC, Space, make_scheduler, make_search, weight_of
from sweeps.settings import Sweep
from trainer.config import Trial, UsageError

UNITS = {"l2": 2.0, "ssim": 0.5}


@pytest.fixture
def sweep(tmp_path):
    trial = Trial(data=str(tmp_path), model="resnet8")
    sweep = Sweep(
        name="s",
        storage=str(tmp_path),
        tracking_uri="",
        trial=trial,
        regularizers=("l2", "ssim"),
        trials_per_regularizer=2,
    )
    sweep.folder.mkdir()
    return sweep


def test_weights_lie_around_their_units():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    space = Space(("none", "l2", "ssim"), UNITS, 5)
    seeds = {"none": [], "l2": [], "ssim": []}
    for _ in range(30):
        trial = study.ask()
        config = space(trial) | trial.params
        name = config["regularizer"]
        seeds[name].append(config["seed"])
        if name == "none":
            assert weight_of(config) == 0.0
        else:
            low, high = REGULARIZERS[name].strengths()
            assert low <= weight_of(config) / UNITS[name] <= high
    assert all(given == list(range(5, 5 + len(given))) for given in seeds.values())


def test_every_regularizer_gets_the_same_number_of_trials(sweep):
    search = make_search(sweep, UNITS)
    asked = [search.suggest(f"t{i}")["regularizer"] for i in range(sweep.total_trials)]
    assert sorted(asked) == ["l2", "l2", "none", "none", "ssim", "ssim"]


def test_named_strengths_are_tried_by_every_regularizer(sweep):
    search = make_search(dataclasses.replace(sweep, strengths=(0.1, 1000.0)), UNITS)  # the ends of the range
    configs = [search.suggest(f"t{i}") for i in range(sweep.total_trials)]
    tried = sorted((c["regularizer"], weight_of(c)) for c in configs)
    assert tried == [("l2", 0.2), ("l2", 2000.0), ("none", 0.0), ("none", 0.0), ("ssim", 0.05), ("ssim", 500.0)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"strengths": (1.0,)}, "--strengths gives 1, --trials-per-regularizer is 2"),
        ({"strengths": (0.05, 1e4)}, "--strengths 0.05,10000: give numbers from 0.1 to 1000"),
        ({"scheduler": "hyperband"}, "--scheduler 'hyperband' is unknown; choose from asha, none"),
    ],
)
def test_strengths_and_schedulers_that_cannot_be_are_refused(sweep, change, words):
    with pytest.raises(UsageError, match=words):
        dataclasses.replace(sweep, **change)


def test_without_a_scheduler_no_trial_is_stopped(sweep):
    result = {METRIC: 0.0, "images_seen": 10**9, "training_iteration": 1}

    def decisions(scheduler):
        trials = [SimpleNamespace(trial_id=str(i), config={"regularizer": "l2"}) for i in range(8)]
        for trial in trials:
            scheduler.on_trial_add(None, trial)
        return {scheduler.on_trial_result(None, t, result | {METRIC: -i}) for i, t in enumerate(trials)}

    assert decisions(make_scheduler(dataclasses.replace(sweep, scheduler="none"))) == {"CONTINUE"}
    assert "STOP" in decisions(make_scheduler(sweep))


def test_the_same_seed_proposes_the_same_weights(sweep):
    other = dataclasses.replace(sweep, name="other")
    other.folder.mkdir()
    first, second = make_search(sweep, UNITS), make_search(other, UNITS)
    assert [first.suggest(f"t{i}") for i in range(6)] == [second.suggest(f"t{i}") for i in range(6)]


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_a_trial_without_a_finite_result_does_not_run_for_ever(sweep, value):
    search = make_search(sweep, UNITS)
    search.suggest("t")
    search.on_trial_complete("t", {METRIC: value, "training_iteration": 1})
    assert [trial.state for trial in search._study.trials][0] == TrialState.FAIL


def test_a_study_newer_than_the_snapshot_is_taken_up(sweep, tmp_path):
    search = make_search(sweep, UNITS)
    pickled = cloudpickle.dumps(search)  # as Tune keeps it for a restart
    search.suggest("known")
    search.save(str(tmp_path / "snapshot"))
    search.suggest("forgotten")
    search.on_trial_complete("known", {METRIC: 0.5, "training_iteration": 1})
    again = cloudpickle.loads(pickled)
    again.restore(str(tmp_path / "snapshot"))
    again.on_trial_complete("known", {METRIC: 0.5, "training_iteration": 1})
    states = [trial.state for trial in again._study.trials]
    assert states[:2] == [TrialState.COMPLETE, TrialState.FAIL]
    assert TrialState.RUNNING not in states
    configs = [again.suggest(f"t{i}") for i in range(sweep.total_trials - 1)]
    asked = again._study.get_trials(states=(TrialState.RUNNING, TrialState.COMPLETE))
    assert sorted(trial.params["regularizer"] for trial in asked) == 2 * ["l2"] + 2 * ["none"] + 2 * ["ssim"]
    assert sorted(c["seed"] for c in configs if c["regularizer"] == "ssim") == [0, 1]
