"""The sweep that a command line asks for: on the digits, with a preset, from where an earlier one is."""

import dataclasses
from pathlib import Path

import pytest
import yaml
from asking import parse

from sweeps import command_line, presets
from sweeps.prepare import filled_in
from sweeps.search import make_search
from sweeps.settings import Sweep
from trainer.errors import FieldError, UsageError


def test_the_original_finetunes_as_its_flags_say(asked, tmp_path):
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
        "--batch-norm", "stop", "--strengths", "1,10", "--scheduler", "asha", "--epochs", 2, "--cache-size", 7,
    )  # fmt: skip
    trial = sweep.trial
    assert (trial.batch_size, trial.learning_rate, trial.batch_norm, trial.epochs) == (32, 0.01, "stop", 2)
    assert (trial.weight, sweep.strengths, sweep.scheduler) == (0.0, (1.0, 10.0), "asha")
    assert (sweep.placement.workers, sweep.placement.cache.size) == (3, 7)


def test_without_a_preset_nothing_of_it(asked):
    sweep = asked()
    trial = sweep.trial
    assert (trial.learning_rate, trial.schedule, trial.batch_norm, trial.clip_norm) == (3e-3, "constant", "frozen", 2.0)
    assert (trial.weight, sweep.scheduler, trial.flip) == (0.0, "rule", True)
    assert (trial.batch_size, trial.pgd_eps) == (64, 2 / 255), "nor of the digits"


def test_without_data_the_digits(tmp_path):
    sweep, asked = parse()
    assert sweep.trial == presets.digits()
    assert asked == command_line.Asked()
    assert parse("-v")[1].verbose
    for name in ("resnet8", "resnet18", "timm:test_efficientnet"):
        assert parse("--model", name)[0].trial.image_size == 32, "whatever the model"


def test_one_weight_is_that_of_every_penalty(asked):
    sweep = asked("--weight", 0.5, "--regularizers", "l2,tv", "--trials-per-regularizer", 2)
    sweep.save()
    search = make_search(sweep, {"l2": 1e4, "tv": 1e-4})
    proposals = [search.suggest(str(number)) for number in range(6)]
    weights = [(p["regularizer"], p.get(f"weight_{p['regularizer']}"), p["seed"]) for p in proposals]
    assert weights == [
        ("none", None, 0), ("l2", 0.5, 0), ("tv", 0.5, 0), ("none", None, 1), ("l2", 0.5, 0), ("tv", 0.5, 0)
    ]  # fmt: skip


def test_a_trial_is_fed_what_its_model_is_made_for_unless_flags_say_otherwise(asked):
    half = (0.5, 0.5, 0.5)
    trial = asked("--model", "timm:tf_efficientnet_lite0").trial
    assert (trial.mean, trial.std, trial.image_size) == (half, half, 224)
    trial = asked("--model", "resnet50").trial
    assert (trial.mean, trial.std, trial.image_size) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 224)
    trial = asked("--mean", "0.5,0.5,0.5", "--std", "1,1,0.25").trial
    assert (trial.mean, trial.std, trial.image_size) == (half, (1.0, 1.0, 0.25), None)


def test_settings_keep_the_numbers(asked, tmp_path):
    sweep = asked("--mean", "0.5,0.25,0", "--strengths", "1e-4,2", "--pgd-eps", "1/255", "--clip-norm", "none")
    sweep.save()
    again = Sweep.load("s", str(tmp_path))
    assert again == sweep
    assert (again.trial.mean, again.trial.clip_norm) == ((0.5, 0.25, 0.0), None)
    assert again.trial.digest() == sweep.trial.digest()
    assert set(yaml.safe_load((tmp_path / "s/sweep.yaml").read_text())) == {
        field.name for field in dataclasses.fields(Sweep)
    }


def test_pretrained_is_no_file(asked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("pretrained").touch()
    assert filled_in(asked("--checkpoint", "pretrained")).trial.checkpoint == "pretrained"
    assert filled_in(asked("--checkpoint", "./pretrained")).trial.checkpoint == str(tmp_path / "pretrained")


def test_flags_that_cannot_change_an_earlier_sweep_are_refused(asked, tmp_path):
    sweep = asked()
    sweep.save()

    def again(*arguments):
        return parse("--storage", tmp_path, "--name", "s", *arguments)[0]

    for arguments, words in (
        (("--resume", "--epochs", 3, "--seed", 1), "^--epochs, --seed: with --resume a sweep keeps its settings"),
        (("--resume", "--no-flip"), "^--no-flip|--flip: .* only --name, --storage, --verbose, --max-accuracy-drop can"),
        (("--resume", "--seeds", 4), "^--seeds: with --resume"), (("--resume", "--config", "x"), "^--config: with"),
        (("--resume", "--cache-size", 3, "--gpus-per-worker", 1), "^--gpus-per-worker, --cache-size: with --resume"),
        (("--extend", 1, "--keep", "all"), "^--keep: with --extend .* --seeds, --finalists, --max-accuracy-drop, --m"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=words):
            again(*arguments)
    assert again("--resume", "--max-accuracy-drop", 0.05, "-v") == dataclasses.replace(sweep, max_accuracy_drop=0.05)
    assert again("--resume", "--epochs", 2, "--data", sweep.trial.data) == sweep, "they are as they were"
    with pytest.raises(FieldError, match="extensions=2: sweep s has not ended"):
        again("--extend", 2)
    (tmp_path / "s/result.json").write_text('{"trials_per_regularizer": [1]}')
    more = again("--extend", 2, "--seeds", 4, "--finalists", 2, "--max-concurrent", 1)
    assert more == dataclasses.replace(sweep, seeds=4, finalists=2, max_concurrent=1)


def test_a_sweep_whose_search_never_began_is_not_called_unknown(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s/.driver").touch()
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "old").mkdir()
    (tmp_path / "old/settings.json").write_text("{}")
    for name, words in (
        ("s", "ended before its search began.*give its command again"), ("evaluation", "no sweep"),
        ("old", "of an earlier version, which kept settings.json; start another sweep"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=words):
            parse("--storage", tmp_path, "--name", name, "--resume")
