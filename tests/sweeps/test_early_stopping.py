"""Which trials are stopped early, before and after an interruption."""

import dataclasses
import random
from types import SimpleNamespace

import pytest
from ray import cloudpickle
from ray.tune.schedulers import ASHAScheduler
from recorded import begin, new_sweep, report

from sweeps.early_stopping import make_scheduler
from sweeps.recording import Recording
from sweeps.search import METRIC


@pytest.fixture
def recording(tmp_path):
    """Of a sweep of four epochs of 1,000 images."""
    sweep = new_sweep(tmp_path, "")
    trial = dataclasses.replace(sweep.trial, epochs=4, images_per_epoch=1000)
    return Recording(dataclasses.replace(sweep, trial=trial))


def decide(scheduler, trial_id, name, robust, images):
    trial = SimpleNamespace(trial_id=trial_id, config={"regularizer": name})
    scheduler.on_trial_add(None, trial)
    result = {METRIC: robust, "images_seen": images, "training_iteration": 99}
    return scheduler.on_trial_result(None, trial, result)


def test_rungs_are_images_seen_and_the_same_for_all(recording):
    scheduler = make_scheduler(recording.sweep)
    assert decide(scheduler, "a", "l2", 0.5, 1000) == "CONTINUE"
    assert decide(scheduler, "b", "ssim", 0.4, 999) == "CONTINUE"  # before the rung, whatever the iteration
    assert decide(scheduler, "c", "ssim", 0.1, 1000) == "STOP"
    assert decide(scheduler, "d", "none", 0.0, 1000) == "CONTINUE"  # the baseline is what all are measured against
    assert decide(scheduler, "e", "tv", 0.4, 2000) == "CONTINUE"  # the first of the next rung
    assert decide(scheduler, "f", "tv", 0.3, 2000) == "STOP"


def test_without_a_scheduler_no_trial_is_stopped(recording):
    scheduler = make_scheduler(dataclasses.replace(recording.sweep, scheduler="none"))
    assert {decide(scheduler, str(number), "l2", -number, 1000) for number in range(8)} == {"CONTINUE"}


def test_after_a_restart_and_in_an_extension_it_decides_as_if_nothing_had_been(recording):
    """Against Ray's own ASHA that lives through all of it."""
    draw, kept = random.Random(0), cloudpickle.dumps(make_scheduler(recording.sweep))
    whole = ASHAScheduler("images_seen", METRIC, "max", max_t=4001, grace_period=1000, reduction_factor=2)
    stopped = 0
    for number in range(30):
        if number % 7 == 0:  # another process, with the scheduler of the first snapshot; or another part
            scheduler = cloudpickle.loads(kept) if number % 2 else make_scheduler(recording.sweep)
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
