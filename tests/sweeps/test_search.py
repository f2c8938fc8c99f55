"""The search space and the durable study, without Ray."""

import dataclasses
import math
import pickle
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from ray import cloudpickle

from regularizers import REGULARIZERS
from sweeps.checks import check_ranges
from sweeps.dial_sampler import MAX_DROP
from sweeps.proposals import weight_of
from sweeps.resuming import extended
from sweeps.search import METRIC, Space, make_search, open_study
from sweeps.settings import Sweep
from trainer.config import Trial, UsageError
from trainer.locations import write_json
from trainer.placement import Placement

UNITS = {"l2": 2.0, "ssim": 0.5}


@pytest.fixture
def sweep(tmp_path):
    trial = Trial(data=str(tmp_path), model="resnet8", epochs=1)
    sweep = Sweep(
        name="s",
        storage=str(tmp_path),
        trial=trial,
        regularizers=("l2", "ssim"),
        trials_per_regularizer=2,
    )
    Path(sweep.folder).mkdir()
    return sweep


def test_weights_lie_around_their_units():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    space = Space(("none", "l2", "ssim"), UNITS)
    for _ in range(30):
        trial = study.ask()
        config = space(trial)
        assert config == trial.params
        name = config["regularizer"]
        if name == "none":
            assert weight_of(config) == 0.0
        else:
            low, high = REGULARIZERS[name].strengths()
            assert low <= weight_of(config) / UNITS[name] <= high


def test_every_regularizer_gets_the_same_number_of_trials(sweep):
    search = make_search(sweep, UNITS)
    asked = [search.suggest(f"t{i}")["regularizer"] for i in range(sweep.total_trials)]
    assert sorted(asked) == ["l2", "l2", "none", "none", "ssim", "ssim"]
    assert search.suggest("more")["number"] == 6


def test_named_strengths_are_tried_by_every_regularizer(sweep):
    search = make_search(dataclasses.replace(sweep, strengths=(0.1, 1000.0)), UNITS)  # the ends of the range
    configs = [search.suggest(f"t{i}") for i in range(sweep.total_trials)]
    tried = sorted((c["regularizer"], weight_of(c)) for c in configs)
    assert tried == [("l2", 0.2), ("l2", 2000.0), ("none", 0.0), ("none", 0.0), ("ssim", 0.05), ("ssim", 500.0)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"strengths": (1.0,)}, "^strengths=1: one trial runs for each of the 1, but trials_per_regularizer is 2"),
        ({"strengths": (0.0, 1.0)}, "^strengths=0,1: give finite numbers above 0"),
        ({"scheduler": "hyperband"}, "^scheduler=hyperband: choose from rule, asha, none"),
        ({"sampler": "sobol"}, "^sampler=sobol: choose from dial, tpe, random, grid"),
        ({"sampler": "grid", "strengths": (1.0, 2.0)}, "^sampler=grid: strengths says what to try already"),
        ({"sampler": "random", "allocation": "adaptive"}, "^sampler=random: moves no trials; give dial or tpe"),
        ({"allocation": "fair"}, "^allocation=fair: choose from equal, adaptive"),
        ({"objectives": "all"}, "^objectives=all: choose from robust, both"),
        ({"strengths": (1.0, 2.0), "allocation": "adaptive"}, "leave out allocation"),
        ({"seeds": 1}, "^seeds=1: give at least 2"),
        ({"max_accuracy_drop": -0.01}, "^max_accuracy_drop=-0.01: give a fraction from 0 to below 1"),
        ({"name": "a:b"}, "^name='a:b': give a name without / "),
        ({"name": "it's"}, "give a name"),
        ({"name": "a\n"}, "give a name"),
        ({"extensions": (0,)}, "^extensions=0: give a whole number of at least 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(sweep, change, words):
    with pytest.raises(UsageError, match=words):
        dataclasses.replace(sweep, **change)


def test_strengths_outside_the_ranges_are_refused_before_the_search(sweep):
    with pytest.raises(UsageError, match="^strengths=0.05,1000.5: give numbers from 0.1 to 1000$"):
        check_ranges(dataclasses.replace(sweep, strengths=(0.05, 1000.5)))
    check_ranges(dataclasses.replace(sweep, strengths=(0.1, 1000.0)))


def test_the_same_seed_proposes_the_same_weights(sweep):
    other = dataclasses.replace(sweep, name="other")
    Path(other.folder).mkdir()
    first, second = make_search(sweep, UNITS), make_search(other, UNITS)
    assert [first.suggest(f"t{i}") for i in range(6)] == [second.suggest(f"t{i}") for i in range(6)]


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_a_trial_without_a_finite_result_does_not_run_for_ever(sweep, value):
    search = make_search(sweep, UNITS)
    search.suggest("t")
    search.on_trial_complete("t", {METRIC: value, "training_iteration": 1})
    assert [trial.state for trial in search.study.trials][0] == TrialState.FAIL


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
    states = [trial.state for trial in again.study.trials]
    assert states[:2] == [TrialState.COMPLETE, TrialState.FAIL]
    assert TrialState.RUNNING not in states
    configs = [again.suggest(f"t{i}") for i in range(sweep.total_trials - 1)]
    asked = again.study.get_trials(states=(TrialState.RUNNING, TrialState.COMPLETE))
    assert sorted(trial.params["regularizer"] for trial in asked) == 2 * ["l2"] + 2 * ["none"] + 2 * ["ssim"]
    assert [c["seed"] for c in configs if c["regularizer"] == "none"] == [1]
    assert {c["seed"] for c in configs if c["regularizer"] == "ssim"} == {0}


def run_to_the_end(search, number, score=lambda config: 0.5, start=0):
    """Propose and end trials one by one, as Tune would; their configurations."""
    configs = []
    for i in range(start, start + number):
        configs.append(search.suggest(f"t{i}"))
        result = {METRIC: score(configs[-1]), "val/accuracy": 0.9, "epoch": 1, "training_iteration": 1}
        search.on_trial_complete(f"t{i}", result)
    return configs


@pytest.mark.parametrize("sampler", ["dial", "tpe"])
def test_adaptive_allocation_tries_every_regularizer_and_then_what_works(sweep, sampler):
    sweep = dataclasses.replace(sweep, sampler=sampler, allocation="adaptive", trials_per_regularizer=12)
    score = lambda config: 0.1 + 0.1 * math.log10(1 + weight_of(config)) * (config["regularizer"] == "ssim")  # noqa: E731
    configs = run_to_the_end(make_search(sweep, UNITS), 36, score)
    assert sweep.total_trials == 36
    names = [config["regularizer"] for config in configs]
    assert sorted(names[:3]) == ["l2", "none", "ssim"]
    assert names[12:].count("ssim") > 12, names
    assert {config["seed"] for config in configs if config["regularizer"] == "ssim"} == {0}


def test_a_suggestion_looks_through_the_trials_once(sweep, monkeypatch):
    passes, stock = [], optuna.samplers.TPESampler._sample
    monkeypatch.setattr(optuna.samplers.TPESampler, "_sample", lambda *given: passes.append(given[3]) or stock(*given))
    search = make_search(dataclasses.replace(sweep, sampler="tpe", trials_per_regularizer=8), UNITS)
    run_to_the_end(search, 15, weight_of)
    passes.clear()
    configs = run_to_the_end(search, 9, weight_of, start=15)
    names = [config["regularizer"] for config in configs]
    assert [list(space) for space in passes] == [[f"weight_{name}"] for name in names if name != "none"]


def test_an_extension_goes_on_with_the_study(sweep):
    first = run_to_the_end(make_search(sweep, UNITS), 6)
    sweep = dataclasses.replace(sweep, extensions=(3,))
    assert sweep.parts == (2, 3)
    assert sweep.total_trials == 15
    search = make_search(sweep, UNITS, part=1)
    second = run_to_the_end(search, 9)
    assert [trial.number for trial in search.study.trials] == list(range(15))
    assert sorted(config["regularizer"] for config in second) == 3 * ["l2"] + 3 * ["none"] + 3 * ["ssim"]
    assert [c["seed"] for c in first + second if c["regularizer"] == "none"] == [0, 1, 2, 3, 4]
    assert {c["seed"] for c in first + second if c["regularizer"] != "none"} == {0}
    weights = [weight_of(c) for c in first + second if c["regularizer"] != "none"]
    assert len(set(weights)) == len(weights), "an extension proposed the same weights again"


def test_named_strengths_are_not_tried_again_by_an_extension(sweep):
    sweep = dataclasses.replace(sweep, strengths=(1.0, 2.0), extensions=(1,))
    run_to_the_end(make_search(sweep, UNITS), 6)
    weights = [weight_of(config) for config in run_to_the_end(make_search(sweep, UNITS, part=1), 3)]
    assert not {2.0, 4.0, 0.5, 1.0} & set(weights)


def test_an_adaptive_extension_has_no_turns(sweep):
    sweep = dataclasses.replace(sweep, allocation="adaptive", extensions=(2,))
    run_to_the_end(make_search(sweep, UNITS), 6)
    waiting = make_search(sweep, UNITS, part=1).study.get_trials(states=(TrialState.WAITING,))
    assert waiting == []


def test_what_a_process_left_that_was_killed_at_its_start_is_ended(sweep):
    make_search(sweep, UNITS).suggest("lost")
    search = make_search(sweep, UNITS)
    states = [trial.state for trial in search.study.trials]
    assert states == 6 * [TrialState.FAIL] + 6 * [TrialState.WAITING]
    assert sorted((c["regularizer"], c["seed"]) for c in run_to_the_end(search, 6)) == [
        ("l2", 0), ("l2", 0), ("none", 0), ("none", 1), ("ssim", 0), ("ssim", 0)
    ]  # fmt: skip


def test_both_objectives_reach_the_study(sweep):
    sweep = dataclasses.replace(sweep, objectives="both", trials_per_regularizer=5)
    search = make_search(sweep, UNITS)
    run_to_the_end(search, 14, weight_of)  # more than TPE draws at random
    assert search.study.trials[3].values == [0.9, search.study.trials[3].params.get("weight_l2", 0.0)]
    search.suggest("bad")
    search.on_trial_result("bad", {"val/accuracy": 0.9, METRIC: 0.1, "training_iteration": 1})
    search.on_trial_complete("bad", {"val/accuracy": math.nan, METRIC: 0.1, "epoch": 1, "training_iteration": 1})
    states = [trial.state for trial in search.study.trials]
    assert states == 14 * [TrialState.COMPLETE] + [TrialState.FAIL]
    assert search.study.best_trials


@pytest.mark.parametrize("objectives", ["robust", "both"])
def test_the_low_budget_value_of_a_stopped_trial_is_not_a_result(sweep, objectives):
    trial = dataclasses.replace(sweep.trial, epochs=4)
    search = make_search(dataclasses.replace(sweep, trial=trial, objectives=objectives), UNITS)
    whole = {METRIC: 0.1, "val/accuracy": 0.5, "epoch": 4.0, "training_iteration": 4}
    for name, change in (
        ("whole", {}),
        ("stopped", {METRIC: 0.9, "epoch": 1.0, "training_iteration": 1}),
        ("diverged", {METRIC: 0.0, "epoch": 2.0, "diverged": 1.0}),
    ):
        search.suggest(name)
        search.on_trial_complete(name, whole | change)
    states = [trial.state for trial in search.study.trials[:3]]
    assert states == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.COMPLETE]
    assert search.study.best_trials[0].number == 0
    if objectives == "robust":  # Optuna knows where it stood
        assert search.study.trials[1].intermediate_values == {1: 0.9}


def test_only_a_sweep_that_has_ended_is_extended(sweep):
    sweep = dataclasses.replace(sweep, placement=Placement(gpus_per_worker=0.0, cpus_per_worker=1.0))
    sweep.save()
    with pytest.raises(UsageError, match="has not ended; resume continues it"):
        extended(sweep, 1)
    write_json(f"{sweep.folder}/result.json", {"trials_per_regularizer": [2]})
    more = extended(dataclasses.replace(sweep, seeds=4), 3)
    assert (more.parts, more.seeds) == ((2, 3), 4)
    more.save()
    assert Sweep.load("s", sweep.storage) == more
    with pytest.raises(UsageError, match="has not ended"):  # the result is that of the part before
        extended(more, 1)


def test_a_grid_is_the_same_strengths_for_all_and_others_in_an_extension(sweep):
    sweep = dataclasses.replace(sweep, sampler="grid", extensions=(2,))
    search = make_search(sweep, UNITS)
    first = run_to_the_end(search, 6)
    strengths = [weight_of(c) / UNITS[c["regularizer"]] for c in first if c["regularizer"] != "none"]
    assert strengths == pytest.approx([1, 1, 100, 100])  # the middles of both halves of 0.1 to 1000
    second = run_to_the_end(make_search(sweep, UNITS, part=1), 6)
    assert not {weight_of(c) for c in second if weight_of(c)} & {weight_of(c) for c in first}


def measure(config):
    """What training would find: accuracy falls and robustness rises along the strength; ssim can win."""
    if config["regularizer"] == "none":
        return {"val/accuracy": 0.9, METRIC: 0.05}
    x = math.log10(weight_of(config) / UNITS[config["regularizer"]])
    accuracy = 0.1 + 0.8 / (1 + math.exp(3 * (x - 2)))
    return {
        "val/accuracy": accuracy,
        METRIC: accuracy * (0.7 if config["regularizer"] == "ssim" else 0.2) * (x + 1) / 4,
    }


def train(search, number, start=0):
    """Propose, train and end trials one by one."""
    configs = []
    for i in range(start, start + number):
        configs.append(search.suggest(f"t{i}"))
        images = {"val/examples": 5000.0, "val/attacked_examples": 256.0}
        search.on_trial_complete(f"t{i}", measure(configs[-1]) | images | {"epoch": 1.0, "training_iteration": 1})
    return configs


def test_the_dial_closes_in_on_the_strength_at_the_limit(sweep):
    """Without the limit, the most robust strength of these curves lies at an accuracy of 0.6."""
    sweep = dataclasses.replace(sweep, trials_per_regularizer=6)
    configs = [config for config in train(make_search(sweep, UNITS), 18) if config["regularizer"] == "ssim"]
    last = [measure(config)["val/accuracy"] for config in configs[3:]]
    assert all(0.86 < accuracy < 0.9 for accuracy in last), last
    assert max(measure(c)[METRIC] for c in configs if measure(c)["val/accuracy"] >= 0.88) > 0.26, "0.274 at best"


def test_the_dial_goes_on_in_another_process_as_it_would_have(sweep, tmp_path):
    """With nothing but the journal and what Tune keeps of the searcher's first moment."""
    sweep = dataclasses.replace(sweep, trials_per_regularizer=4)
    other = dataclasses.replace(sweep, name="other")
    Path(other.folder).mkdir()
    whole = train(make_search(other, UNITS), 12)
    search = make_search(sweep, UNITS)
    pickled, size = cloudpickle.dumps(search), len(pickle.dumps(search.study.sampler))
    first = train(search, 7)
    assert len(pickle.dumps(search.study.sampler)) < size + 1000, "snapshots do not grow"
    search.save(str(tmp_path / "snapshot"))
    again = cloudpickle.loads(pickled)
    again.restore(str(tmp_path / "snapshot"))
    assert first + train(again, 5, start=7) == whole


def test_the_dial_aims_at_the_drop_that_the_study_has_now(sweep):
    """A sweep that is resumed may allow another."""
    sweep = dataclasses.replace(sweep, trials_per_regularizer=8)
    search = make_search(sweep, UNITS)
    train(search, 12)
    open_study(sweep).set_user_attr(MAX_DROP, 0.3)
    last = [measure(config)["val/accuracy"] for config in train(search, 12, 12) if config["regularizer"] != "none"]
    assert min(last) < 0.75
    assert search.study.get_trials()[-1].constraints["accuracy"] == pytest.approx(0.6 - last[-1])


def test_the_dial_knows_of_trials_that_run_and_of_stopped_ones(sweep):
    trial = dataclasses.replace(sweep.trial, epochs=4)
    sweep = dataclasses.replace(sweep, trial=trial, trials_per_regularizer=8)
    search = make_search(sweep, UNITS)
    asked = [search.suggest(f"t{i}") for i in range(9)]
    weights = sorted(weight_of(config) for config in asked if config["regularizer"] == "l2")
    assert weights[1] > 1.1 * weights[0]
    assert weights[2] > 1.1 * weights[1]
    search.on_trial_complete("t0", {"val/accuracy": 0.9, METRIC: 0.05, "epoch": 4.0})
    bad = {"val/accuracy": 0.1, METRIC: 0.1, "val/examples": 500.0, "val/attacked_examples": 32.0, "epoch": 1.0}
    for i in (1, 4, 7):
        search.on_trial_complete(f"t{i}", bad)
    (dial,) = [dial for name, dial in search.study.sampler.dials(search.study).items() if name == "l2"]
    assert {(t.progress, t.images, t.attacked) for t in dial.trials} == {(0.25, 500, 32)}
    assert dial.baseline.accuracy == 0.9
    for i in range(9, 12):
        config = search.suggest(f"t{i}")
        if config["regularizer"] == "l2":
            assert weight_of(config) < weights[0], "weaker than all that ruined the network"


def test_a_trial_beyond_the_limit_is_one_that_tpe_is_told_to_avoid(sweep):
    search = make_search(dataclasses.replace(sweep, sampler="tpe"), UNITS)
    train(search, 6)
    for trial in search.study.get_trials():
        config = trial.params
        beyond = 0.88 - measure(config)["val/accuracy"]
        assert trial.constraints == pytest.approx({"accuracy": beyond})


def test_the_limit_is_that_of_the_mean_of_the_baselines(sweep):
    """Diverged ones say nothing; where there is none yet, no trial is refused."""
    search = make_search(dataclasses.replace(sweep, regularizers=("l2",), trials_per_regularizer=4), UNITS)
    measured = iter([0.0, 0.8, 0.9, 0.8, 0.86, 0.8, 0.0, 0.8])
    for i in range(8):
        search.suggest(f"t{i}")
        accuracy = next(measured)
        search.on_trial_complete(f"t{i}", {"val/accuracy": accuracy, METRIC: 0.1, "epoch": 1.0})
    found = [trial.constraints for trial in search.study.get_trials() if trial.params["regularizer"] == "l2"]
    assert found == [{}, *({"accuracy": pytest.approx(beyond)} for beyond in (0.08, 0.06, 0.06))]
