"""Which trials are stopped early, before and after an interruption."""

import dataclasses
import random
from types import SimpleNamespace

import pytest
from ray import cloudpickle
from ray.tune.schedulers import ASHAScheduler
from recorded import begin, new_sweep, report

from sweeps.early_stopping import make_scheduler
from sweeps.events import EpochReported, SweepStarted
from sweeps.recording import Recording
from sweeps.search import METRIC


@pytest.fixture
def recording(tmp_path):
    """Of a sweep of four epochs of 1,000 images."""
    sweep = new_sweep(tmp_path, "")
    trial = dataclasses.replace(sweep.trial, epochs=4, images_per_epoch=1000)
    return Recording(dataclasses.replace(sweep, trial=trial))


@pytest.fixture
def asha(recording):
    """The same with ASHA."""
    return dataclasses.replace(recording.sweep, scheduler="asha")


def decide(scheduler, trial_id, name, robust, images):
    trial = SimpleNamespace(trial_id=trial_id, config={"regularizer": name})
    scheduler.on_trial_add(None, trial)
    result = {METRIC: robust, "images_seen": images, "training_iteration": 99}
    return scheduler.on_trial_result(None, trial, result)


def test_rungs_are_images_seen_and_the_same_for_all(asha):
    scheduler = make_scheduler(asha)
    assert decide(scheduler, "a", "l2", 0.5, 1000) == "CONTINUE"
    assert decide(scheduler, "b", "ssim", 0.4, 999) == "CONTINUE"  # before the rung, whatever the iteration
    assert decide(scheduler, "c", "ssim", 0.1, 1000) == "STOP"
    assert decide(scheduler, "d", "none", 0.0, 1000) == "CONTINUE"  # the baseline is what all are measured against
    assert decide(scheduler, "e", "tv", 0.4, 2000) == "CONTINUE"  # the first of the next rung
    assert decide(scheduler, "f", "tv", 0.3, 2000) == "STOP"


def test_without_a_scheduler_no_trial_is_stopped(recording):
    scheduler = make_scheduler(dataclasses.replace(recording.sweep, scheduler="none"))
    assert {decide(scheduler, str(number), "l2", -number, 1000) for number in range(8)} == {"CONTINUE"}


def test_after_a_restart_and_in_an_extension_asha_decides_as_if_nothing_had_been(recording, asha):
    """Against Ray's own ASHA that lives through all of it."""
    draw, kept = random.Random(0), cloudpickle.dumps(make_scheduler(asha))
    whole = ASHAScheduler("images_seen", METRIC, "max", max_t=4001, grace_period=1000, reduction_factor=2)
    stopped = 0
    for number in range(30):
        if number % 7 == 0:  # another process, with the scheduler of the first snapshot; or another part
            scheduler = cloudpickle.loads(kept) if number % 2 else make_scheduler(asha)
        name, trial_id = ("none", "l2", "tv")[number % 3], f"t{number}"
        begin(recording, trial_id, regularizer=name, repeats=number % 5 == 4)
        for epoch in range(1, 5):
            robust = draw.random()
            if number % 5 != 4:  # a repetition of a best weight is not for the search to see
                found = decide(scheduler, trial_id, name, robust, 1000 * epoch)
                expected = "CONTINUE" if name == "none" else decide(whole, trial_id, name, robust, 1000 * epoch)
                assert found == expected, (number, epoch)
            report(recording, trial_id, epoch, robust, images_seen=1000.0 * epoch)
            if number % 5 != 4 and found == "STOP":
                stopped += 1
                break
    assert stopped > 5


def measured(epoch, accuracy, robust, images=1000, attacked=256):
    return {
        "epoch": float(epoch), "val/accuracy": accuracy, "val/robust_accuracy": robust, "val/examples": float(images),
        "val/attacked_examples": float(attacked),
    }  # fmt: skip


class Decisions:
    """Those of a scheduler, on the trials of a test."""

    def __init__(self, scheduler):
        self.scheduler = scheduler

    def __call__(self, name, *results, trial_id=None, **images):
        trial = SimpleNamespace(trial_id=trial_id or name, config={"regularizer": name})
        return [self.scheduler.on_trial_result(None, trial, measured(*result, **images)) for result in results][-1]


@pytest.fixture
def decide_by_rule(recording):
    assert recording.sweep.scheduler == "rule", "the default"
    decisions = Decisions(make_scheduler(recording.sweep))
    decisions("none", (1, 0.84, 0.03), (2, 0.85, 0.04), (3, 0.86, 0.04), (4, 0.86, 0.04))
    return decisions


def test_a_trial_that_the_rule_would_surely_refuse_is_stopped(decide_by_rule):
    assert decide_by_rule("l2", (1, 0.3, 0.1)) == "STOP"
    assert decide_by_rule("tv", (1, 0.77, 0.3)) == "CONTINUE", "it may make up for half of that"
    assert decide_by_rule("l2", (1, 0.6, 0.1)) == "STOP"
    assert decide_by_rule("l2", (1, 0.6, 0.1), images=8) == "CONTINUE", "eight images say too little"


def test_low_robust_accuracy_alone_stops_no_trial(decide_by_rule):
    """ASHA stops half of them; what counts is what is surely refused or outdone."""
    for number in range(8):
        assert decide_by_rule("l2", (1, 0.84, 0.05 * number), trial_id=f"t{number}") == "CONTINUE"


def test_a_trial_is_outdone_only_by_admitted_ones_and_once_its_regularizer_has_one(decide_by_rule):
    decide_by_rule("ssim", (4, 0.7, 0.6))  # most robust, and beyond the limit
    decide_by_rule("tv", (4, 0.85, 0.05))
    assert decide_by_rule("tv", (2, 0.85, 0.05), trial_id="tv2") == "CONTINUE", "no trial that is admitted is better"
    decide_by_rule("l2", (4, 0.85, 0.5))
    assert decide_by_rule("tv", (2, 0.85, 0.05), trial_id="tv2") == "STOP"
    assert decide_by_rule("tv", (2, 0.85, 0.05), trial_id="tv3", attacked=8) == "CONTINUE"
    assert decide_by_rule("cor", (2, 0.85, 0.05)) == "CONTINUE", "none of its own"


def test_the_limit_moves_with_the_mean_of_the_baselines(decide_by_rule):
    decide_by_rule("tv", (4, 0.842, 0.05))
    decide_by_rule("l2", (4, 0.842, 0.5))
    assert decide_by_rule("tv", (2, 0.85, 0.05), trial_id="tv2") == "STOP"
    decide_by_rule("none", (4, 0.90, 0.04), trial_id="none2")  # limit 0.86
    assert decide_by_rule("tv", (2, 0.85, 0.05), trial_id="tv3") == "CONTINUE"
    decide_by_rule("tv", (4, 0.865, 0.5))
    assert decide_by_rule("tv", (2, 0.85, 0.05), trial_id="tv3") == "STOP"


def test_what_ends_by_itself_and_what_is_compared_with_are_not_stopped(decide_by_rule):
    assert decide_by_rule("none", (2, 0.1, 0.0), trial_id="bad") == "CONTINUE"
    assert decide_by_rule("l2", (4, 0.1, 0.0)) == "CONTINUE", "the last epoch"
    trial = SimpleNamespace(trial_id="l2", config={"regularizer": "l2"})
    for result in ({"failed": "no space left", "val/accuracy": 0.0}, measured(1, 0.0, 0.0) | {"diverged": 1.0}):
        assert decide_by_rule.scheduler.on_trial_result(None, trial, result) == "CONTINUE"


def test_before_a_baseline_has_reported_nothing_is_stopped(recording):
    assert Decisions(make_scheduler(recording.sweep))("l2", (1, 0.1, 0.0)) == "CONTINUE"


def test_after_a_restart_the_rule_decides_by_what_the_log_has(recording):
    kept = cloudpickle.dumps(make_scheduler(recording.sweep))
    for trial_id, name, results, more in (
        ("a", "none", ((1, 0.84, 0.03), (4, 0.86, 0.04)), {}),
        ("b", "l2", ((4, 0.85, 0.5),), {}),
        ("c", "tv", ((4, 0.85, 0.1),), {}),
        ("d", "l2", ((4, 0.86, 0.9),), {"repeats": 1}),  # of the final round
        ("e", "l2", ((4, 0.86, 0.9),), {"resumed_from": "b"}),
    ):
        begin(recording, trial_id, regularizer=name, **more)
        for result in results:
            recording.append(EpochReported(trial_id=trial_id, metrics=measured(*result)))
    for scheduler in (cloudpickle.loads(kept), make_scheduler(recording.sweep)):
        decide_ = Decisions(scheduler)
        assert decide_("tv", (1, 0.3, 0.1), trial_id="t1") == "STOP"
        assert decide_("tv", (1, 0.84, 0.1), trial_id="t2") == "STOP", "outdone by half of l2's gain"
        assert decide_("tv", (1, 0.84, 0.25), trial_id="t3") == "CONTINUE", "not by a repetition's"


def test_a_sweep_that_is_resumed_with_another_rule_stops_by_that(recording):
    kept = cloudpickle.dumps(make_scheduler(recording.sweep))
    begin(recording, "a", regularizer="none")
    recording.append(EpochReported(trial_id="a", metrics=measured(1, 0.86, 0.04)))
    for drop, decision in (("0.02", "STOP"), ("0.4", "CONTINUE")):
        recording.append(SweepStarted(name="s", params={"max_accuracy_drop": drop}))
        assert Decisions(cloudpickle.loads(kept))("l2", (1, 0.6, 0.1)) == decision
