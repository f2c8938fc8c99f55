"""The searcher between Tune and the study, without Ray."""

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from ray import cloudpickle
from ray.tune.search import ConcurrencyLimiter

from sweeps.searcher import TUNE_ID, StudySearcher

NAMES, EPOCHS = ("none", "l2", "ssim"), 4


def space(trial):
    return {"regularizer": trial.suggest_categorical("regularizer", NAMES), "x": trial.suggest_float("x", 0, 1)}


def open_storage(tmp_path):
    return JournalStorage(JournalFileBackend(str(tmp_path / "journal")))


@pytest.fixture
def search(tmp_path):
    storage = open_storage(tmp_path)
    study = optuna.create_study(
        storage=storage, study_name="s", direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0)
    )
    return StudySearcher(
        study, storage, space=space, seed=5, epochs=EPOCHS, metrics=["robust"], journal=(tmp_path / "journal", "")
    )


@pytest.fixture
def restart(search, tmp_path):
    """What a new process has of the searcher: Tune's pickle from the start of the sweep, and the last snapshot."""
    pickled = cloudpickle.dumps(search)

    def again():
        new = cloudpickle.loads(pickled)
        new.restore_from_dir(str(tmp_path))
        return new

    return again


def result(epoch=EPOCHS, robust=0.5, **more):
    return {"robust": robust, "epoch": float(epoch), "training_iteration": epoch} | more


def states(search):
    return [trial.state.name for trial in search.study.get_trials()]


def test_penalties_share_a_seed_and_the_nth_baseline_gets_the_nth_and_failed_ones_do_not_count(
    search, restart, tmp_path
):
    expected = {name: 5 for name in NAMES}
    for number in range(40):
        config = search.suggest(f"t{number}")
        baseline = config["regularizer"] == "none"
        assert config["number"] == number
        assert config["seed"] == expected[config["regularizer"]]
        expected["none"] += baseline
        if number % 4 == 0:
            search.on_trial_complete(f"t{number}", error=True)
            expected["none"] -= baseline
        if number % 10 == 9:
            search.save_to_dir(str(tmp_path))
            search = restart()
    assert expected["none"] > 10


def test_a_suggestion_does_not_look_through_all_trials(search, monkeypatch):
    monkeypatch.delattr(optuna.Study, "get_trials")
    assert search.suggest("t")["seed"] == 5


def test_a_snapshot_does_not_grow_with_the_trials(search, tmp_path):
    sizes = []
    for number in range(60):
        search.suggest(f"t{number}")
        search.on_trial_complete(f"t{number}", result())
        search.save(str(tmp_path / "snapshot"))
        sizes.append((tmp_path / "snapshot").stat().st_size)
    assert max(sizes) < min(sizes) + 100  # digits of the random state


def test_the_study_says_which_trial_of_tune_each_was(search):
    for name in ("one", "other"):
        search.suggest(name)
    assert [trial.user_attrs[TUNE_ID] for trial in search.study.get_trials()] == ["one", "other"]


def test_proposals_go_on_after_a_restart_as_they_would_have(search, restart, tmp_path):
    search.suggest("first")
    search.save_to_dir(str(tmp_path))
    again = restart()
    configs = [again.suggest(f"t{number}") for number in range(5)]
    whole = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    assert [config["x"] for config in configs] == [space(whole.ask())["x"] for _ in range(6)][1:]


def test_a_trial_that_goes_on_in_another_process_is_reported_by_its_epochs(search, restart, tmp_path, recwarn):
    search.suggest("t")
    search.on_trial_result("t", result(1, 0.1))
    search.on_trial_result("t", result(2, 0.2))
    search.save_to_dir(str(tmp_path))
    again = restart()
    again.on_trial_result("t", result(2, 0.2, training_iteration=1))  # trained again from its checkpoint
    again.on_trial_complete("t", result(3, 0.3, training_iteration=2))
    (trial,) = again.study.get_trials()
    assert trial.intermediate_values == {1: 0.1, 2: 0.2, 3: 0.3}
    assert (trial.state, trial.value) == (TrialState.PRUNED, 0.3)
    assert not [str(warning.message) for warning in recwarn if "already reported" in str(warning.message)]


def test_results_without_a_number_are_not_reported(search):
    search.suggest("t")
    for value in (float("nan"), None, "0.5"):
        search.on_trial_result("t", result(1, value))
    search.on_trial_result("t", result(1, 0.0, failed="no space left"))
    search.on_trial_complete("t")  # as Tune ends one that waits
    (trial,) = search.study.get_trials()
    assert (trial.state, trial.intermediate_values) == (TrialState.PRUNED, {})


def test_a_failed_trial_has_no_value(search):
    search.suggest("t")
    search.on_trial_complete("t", result(robust=0.0, failed="no space left"))
    assert states(search) == ["FAIL"]


@pytest.mark.parametrize("ending", [result(), result(1), None])
def test_trials_that_tune_forgot_are_tried_again_whether_they_ended_or_not(search, restart, tmp_path, ending):
    for regularizer in ("none", "none", "ssim", "none"):
        search.study.enqueue_trial({"regularizer": regularizer})
    first = search.suggest("known")
    search.save_to_dir(str(tmp_path))
    forgotten = [search.suggest(f"forgotten{number}") for number in range(2)]
    search.on_trial_complete("forgotten0", ending, error=ending is None)
    for _ in range(2):  # the first process that went on did not come to a snapshot
        again = restart()
        assert states(again).count("WAITING") == 3
    configs = [again.suggest(f"new{number}") for number in range(3)]
    told = sorted((config["regularizer"], config["seed"]) for config in [first, *configs])
    assert told == [("none", 5), ("none", 6), ("none", 7), ("ssim", 5)]
    assert [config["x"] for config in configs[1:]] == [config["x"] for config in forgotten]
    assert set(again.running) == {"known", "new0", "new1", "new2"}


def test_forgotten_trials_that_are_forgotten_again_are_tried_once_more(search, restart, tmp_path):
    search.save_to_dir(str(tmp_path))
    x = search.suggest("forgotten")["x"]
    for name in ("again", "and again"):
        search = restart()
        assert search.suggest(name)["x"] == x
    assert states(search) == ["FAIL", "FAIL", "RUNNING"]


def test_trials_that_others_ended_or_that_nobody_knows_raise_nothing(search, tmp_path):
    for name in ("first", "second"):
        search.suggest(name)
    other = optuna.load_study(study_name="s", storage=open_storage(tmp_path))
    other.tell(0, state=TrialState.FAIL)
    for name in ("first", "second", "unknown"):
        search.on_trial_result(name, result(1))
        search.on_trial_complete(name, result())
        search.on_trial_complete(name, result())
    assert states(search) == ["FAIL", "COMPLETE"]
    assert search.running == {}


def test_tune_limits_how_many_trials_run(search):
    limited = ConcurrencyLimiter(search, max_concurrent=1)
    assert limited.suggest("one")
    assert limited.suggest("other") is None
    limited.on_trial_complete("one", result())
    assert limited.suggest("other")
    assert states(search) == ["COMPLETE", "RUNNING"]
    assert (limited.metric, limited.mode) == ("robust", "max")
