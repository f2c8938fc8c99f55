"""The sweep that a command line asks for."""

import json
import sys

import pytest

from sweeps import options
from sweeps.options import parse, sweep_of, with_defaults
from sweeps.search import make_search
from trainer.config import UsageError


@pytest.fixture
def asked(monkeypatch, digits, tmp_path):
    """The sweep of these arguments, on the digits as one's own data."""

    def ask(*arguments):
        own = ["--data", digits, "--model", "resnet8", "--storage", tmp_path, "--name", "s"]
        monkeypatch.setattr(sys, "argv", ["sweep", *map(str, [*own, *arguments])])
        return sweep_of(parse(""))

    return ask


def test_the_original_finetunes_as_its_flags_say(asked, tmp_path):
    (tmp_path / "start.pt").touch()
    sweep = asked("--preset", "original", "--checkpoint", tmp_path / "start.pt", "--workers-per-trial", 4)
    trial = sweep.trial
    assert trial.batch_size * sweep.placement.workers == 512
    assert trial.steps_per_epoch(sweep.placement.workers) * trial.epochs == 500
    assert (trial.learning_rate, trial.schedule, trial.momentum) == (2e-4, "constant", 0.9)
    assert (trial.weight_decay, trial.label_smoothing, trial.clip_norm) == (1e-4, 0.1, None)
    assert (trial.batch_norm, trial.augment, trial.flip) == ("flow", True, False)
    assert (trial.weight, sweep.scheduler) == (0.5, "none")


def test_the_original_trains_from_scratch_with_its_schedule(asked):
    trial = asked("--preset", "original").trial
    assert (trial.learning_rate, trial.schedule, trial.batch_size) == (0.1, "imagenet", 512)


def test_flags_go_before_a_preset(asked):
    sweep = asked(
        "--preset", "original", "--batch-size", 32, "--workers-per-trial", 3, "--learning-rate", 0.01,
        "--batch-norm", "stop", "--strengths", "1,10", "--scheduler", "asha", "--epochs", 2,
    )  # fmt: skip
    trial = sweep.trial
    assert (trial.batch_size, trial.learning_rate, trial.batch_norm, trial.epochs) == (32, 0.01, "stop", 2)
    assert (trial.weight, sweep.strengths, sweep.scheduler) == (0, (1.0, 10.0), "asha")


def test_without_a_preset_nothing_of_it(asked):
    sweep = asked()
    trial = sweep.trial
    assert (trial.learning_rate, trial.schedule, trial.batch_norm, trial.clip_norm) == (3e-3, "constant", "frozen", 2.0)
    assert (trial.weight, sweep.scheduler, trial.flip) == (0.0, "asha", True)


def test_what_cannot_be_is_refused(asked):
    for arguments, words in (
        (("--preset", "original", "--workers-per-trial", 3), "3 workers cannot share a batch of 512"),
        (("--weight", 1, "--strengths", "1"), "leave out --strengths"),
        (("--weight", -1), "weight"),
        (("--weight", "inf"), "finite"),
        (("--ema",), "--ema needs --checkpoint"),
        (("--head-steps", 3), "--head-steps is for --new-head"),
        (("--new-head", "--checkpoint", "w.pt", "--head-steps", -1), "0 to leave the layer random"),
    ):
        with pytest.raises(UsageError, match=words):
            asked(*arguments)


def test_flags_that_an_earlier_sweep_does_not_heed_are_refused(asked, tmp_path):
    asked().save()

    def again(monkeypatch, *arguments):
        monkeypatch.setattr(sys, "argv", ["sweep", "--storage", str(tmp_path), "--name", "s", *map(str, arguments)])
        return sweep_of(parse(""))

    with pytest.MonkeyPatch.context() as patch:
        for arguments, words in (
            (("--resume", "--epochs", 3, "--seed", 0), "^--epochs, --seed: with --resume a sweep keeps the settings"),
            (("--resume", "--no-flip"), "^--no-flip: .* only --name, --storage, --verbose, --max-accuracy-drop are"),
            (("--resume", "--seeds", 3), "^--seeds: with --resume"),
            (("--extend", 1, "--keep", "all"), "^--keep: with --extend .* --seeds, --max-accuracy-drop, --max-concurr"),
        ):
            with pytest.raises(UsageError, match=words):
                again(patch, *arguments)
        assert again(patch, "--resume", "--max-accuracy-drop", 5, "-v").max_accuracy_drop == 0.05
        result = {"trials_per_regularizer": [1]}
        (tmp_path / "s/result.json").write_text(json.dumps(result))
        more = again(patch, "--extend", 2, "--seeds", 3, "--max-concurrent", 1)
        assert (more.extensions, more.seeds, more.max_concurrent) == ((2,), 3, 1)


def test_a_sweep_whose_search_never_began_is_not_called_unknown(tmp_path, monkeypatch):
    (tmp_path / "s").mkdir()
    (tmp_path / "s/.driver").touch()
    (tmp_path / "evaluation").mkdir()
    for name, words in (("s", "ended before its search began.*give its command again"), ("evaluation", "no sweep")):
        monkeypatch.setattr(sys, "argv", ["sweep", "--storage", str(tmp_path), "--name", name, "--resume"])
        with pytest.raises(UsageError, match=words):
            sweep_of(parse(""))


def test_too_few_images_are_told_in_terms_of_what_was_given(asked):
    with pytest.raises(UsageError, match="the train split has only 1258 images, fewer than one batch of 2000;"):
        asked("--batch-size", 2000)
    with pytest.raises(UsageError, match="fewer than one batch of 2000 over 2 workers"):
        asked("--batch-size", 1000, "--workers-per-trial", 2)
    with pytest.raises(UsageError, match="images_per_epoch=6 is less than one step"):
        asked("--images-per-epoch", 6)


def test_a_trials_folder_is_no_checkpoint_to_start_from(asked, tmp_path):
    (tmp_path / "t1/epoch_0002").mkdir(parents=True)
    (tmp_path / "t1/epoch_0002/state.pt").touch()
    with pytest.raises(UsageError, match=f"is the folder of a trial; its last epoch is {tmp_path}/t1/epoch_0002"):
        asked("--checkpoint", tmp_path / "t1")


def test_one_weight_is_that_of_every_penalty(asked):
    sweep = asked("--weight", 0.5, "--regularizers", "l2,tv", "--trials-per-regularizer", 2)
    sweep.save()
    search = make_search(sweep, {"l2": 1e4, "tv": 1e-4})
    proposals = [search.suggest(str(number)) for number in range(6)]
    weights = [(p["regularizer"], p.get(f"weight_{p['regularizer']}"), p["seed"]) for p in proposals]
    assert weights == [
        ("none", None, 0), ("l2", 0.5, 0), ("tv", 0.5, 0), ("none", None, 1), ("l2", 0.5, 1), ("tv", 0.5, 1)
    ]  # fmt: skip


def test_a_trial_is_fed_what_its_model_is_made_for_unless_flags_say_otherwise(asked):
    half = (0.5, 0.5, 0.5)
    trial = asked("--model", "timm:tf_efficientnet_lite0").trial
    assert (trial.mean, trial.std, trial.image_size) == (half, half, 224)
    trial = asked("--model", "resnet50").trial
    assert (trial.mean, trial.std, trial.image_size) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 224)
    trial = asked("--mean", "0.5,0.5,0.5", "--std", "1,1,0.25").trial
    assert (trial.mean, trial.std, trial.image_size) == (half, (1.0, 1.0, 0.25), None)
    with pytest.raises(UsageError, match="^--mean 127,127,127: give three pixel fractions"):
        asked("--mean", "127,127,127")


def test_the_embedded_digits_keep_their_size_whatever_the_model(monkeypatch, tmp_path):
    for name in ("resnet8", "resnet18", "timm:test_efficientnet"):
        monkeypatch.setattr(sys, "argv", ["sweep", "--storage", str(tmp_path), "--model", name])
        assert sweep_of(parse("")).trial.image_size == 32


def test_settings_keep_the_numbers(asked, tmp_path):
    sweep = asked("--mean", "0.5,0.25,0")
    sweep.save()
    again = type(sweep).load(str(tmp_path), "s")
    assert again == sweep
    assert again.trial.mean == (0.5, 0.25, 0.0)
    settings = tmp_path / "s" / "settings.json"
    content = json.loads(settings.read_text())
    del content["trial"]["mean"], content["trial"]["std"]  # as they were before there was a choice
    settings.write_text(json.dumps(content))
    assert type(sweep).load(str(tmp_path), "s").trial.mean == (0.485, 0.456, 0.406)


def test_pretrained_is_no_file(asked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert asked("--checkpoint", "pretrained").trial.checkpoint == "pretrained"
    assert asked("--checkpoint", "./pretrained").trial.checkpoint == str(tmp_path / "pretrained")


def test_a_worker_takes_what_the_machines_there_are_have_unless_told_otherwise(asked, monkeypatch):
    def takes(*arguments):
        sweep = with_defaults(asked(*arguments), parse(""))  # the head is asked first, then the cluster
        return sweep.placement.gpus_per_worker, sweep.placement.cpus_per_worker, sweep.trial.loader_workers

    there = iter([(0.0, 0), (1.0, 6)] * 4)
    monkeypatch.setattr(options, "worker_defaults", lambda: next(there))
    assert takes() == (1.0, 7.0, 6)
    assert takes("--loader-workers", 2) == (1.0, 3.0, 2)
    assert takes("--gpus-per-worker", 0) == (0.0, 1.0, 0)
    assert takes("--gpus-per-worker", 0.5) == (0.5, 7.0, 6)
