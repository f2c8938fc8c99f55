"""The command line of a sweep: one flag for each field, and the sweep it asks for."""

import dataclasses
import functools
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import yaml

from regularizers import REGULARIZERS
from sweeps import command_line, presets
from sweeps.cli import COMMANDS
from sweeps.cli import main as heatmap_sweeps
from sweeps.command_line import NO_FLAG
from sweeps.prepare import filled_in
from sweeps.search import make_search
from sweeps.settings import Sweep
from trainer.cache import ShardCache
from trainer.command import flag, in_flags, run
from trainer.config import Trial, UsageError, regularizer_names
from trainer.errors import FieldError, shown
from trainer.placement import Placement
from trainer.resnet import ACTIVATIONS

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "ray", "mlflow", "optuna", "pyarrow", "timm"}
PARTS = (Sweep, Trial, Placement, ShardCache)
FIELDS = [
    pytest.param(part, field, id=field.name)
    for part in PARTS
    for field in dataclasses.fields(part)
    if field.name not in (*NO_FLAG, "trial", "placement", "cache")
]
OTHER_VALUES = {
    "name": "another", "storage": "/elsewhere", "tracking_uri": "http://there", "regularizers": "l2,tv",
    "strengths": "3,30", "seeds": "2", "keep": "top-3", "local_dir": "/mine", "data": "/shards", "model": "resnet20",
    "checkpoint": "w.pt", "image_size": "16", "mean": "0.5,0.5,0.25", "std": "0.5,0.5,1", "max_accuracy_drop": "1/20",
    "label_smoothing": "0.1", "fixed": "psnr_hvs.error=0.25", "pgd_eps": "4/255", "folder": "/cache",
}  # fmt: skip
BESIDE = {  # what some fields need to make sense
    "new_head": ["--data", "/shards", "--checkpoint", "w.pt"], "ema": ["--data", "/shards", "--checkpoint", "w.pt"],
    "checkpoint": ["--data", "/shards"], "local_dir": ["--storage", "s3://bucket"], "head_steps": [],
}  # fmt: skip


def parse(*arguments):
    return command_line.parse([str(argument) for argument in arguments], "heatmap-sweeps sweep", "Compare.")


@functools.cache
def as_usual(*beside):
    return parse("--name", "x", *beside)[0]


@pytest.fixture
def asked(digits, tmp_path):
    """The sweep of these arguments, on the digits as one's own data."""

    def ask(*arguments):
        return parse("--data", digits, "--model", "resnet8", "--storage", tmp_path, "--name", "s", *arguments)[0]

    return ask


@pytest.fixture(scope="module")
def help_():
    """What --help prints: flags and texts of each entry."""
    done = subprocess.run(
        [sys.executable, ROOT / "sweeps/all_regularizers.py", "--help"],
        capture_output=True, text=True, check=True, cwd="/", env={"COLUMNS": "80", "PATH": ""},
    )  # fmt: skip
    entries, flags = {}, ""
    for line in done.stdout.splitlines():
        words = line.strip("│ ")
        if words.startswith("-"):
            flags, _, words = words.partition("  ")
        if flags:
            entries[flags] = f"{entries.get(flags, '')} {words}".strip()
    return entries


def documented(part, name):
    """What the docstring says of a field."""
    text = " ".join(part.__doc__.split())
    (found,) = re.findall(rf" {name}: (.*?)(?= \w+: |$)", text[text.index("Args:") :])
    return found.replace("`", "")


def value_of(sweep, part, name):
    owner = {Sweep: sweep, Trial: sweep.trial, Placement: sweep.placement, ShardCache: sweep.placement.cache}[part]
    return getattr(owner, name)


@pytest.mark.parametrize(("part", "field"), FIELDS)
def test_every_field_has_one_flag_with_its_help_and_its_default(part, field, help_):
    names = [flag(field.name), f"--no-{flag(field.name)[2:]}"]
    own = [flags for flags in help_ if flag(field.name) in re.split(r"[ ,]+", flags)]
    assert len(own) == 1
    assert (names[1] in own[0].split()) == (get_type_hints(part)[field.name] is bool)
    words = help_[own[0]]
    assert documented(part, field.name)[:40] in words
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if field.name == "name":
        assert re.search(r"\(default: sweep-\d{8}-\d{6}\)", words)
    elif default is dataclasses.MISSING:
        assert "(digits: resnet8)" in words
    else:
        assert re.search(rf"\(default:{re.escape(shown(default))}[;)]", words.replace(" ", ""))
    if part is Trial and field.name in presets.DIGITS and presets.DIGITS[field.name] != default:
        assert f"digits: {shown(presets.DIGITS[field.name])})" in words


def test_no_flag_is_of_nothing(help_):
    flags = {name for entry in help_ for name in re.findall(r"--[a-z-]+", entry)}
    fields = {name for parameter in FIELDS for name in (flag(parameter.values[1].name),)}
    beside = {"--help", "--config", "--preset", "--resume", "--extend", "--verbose"}
    assert {name for name in flags if not name.startswith("--no-")} == fields | beside


@pytest.mark.parametrize(("part", "field"), FIELDS)
def test_every_flag_sets_its_field_and_no_other(part, field):
    kind, beside = get_type_hints(part)[field.name], BESIDE.get(field.name, [])
    beside = [*beside, *(["--model", "resnet8"] if "--data" in beside or field.name == "data" else [])]
    if field.name == "head_steps":
        beside = [*BESIDE["new_head"], "--model", "resnet8", "--new-head"]
    before = as_usual(*beside)
    value = value_of(before, part, field.name)
    if kind is bool:
        arguments = [flag(field.name) if not value else f"--no-{flag(field.name)[2:]}"]
    elif field.name in OTHER_VALUES:
        arguments = [flag(field.name), OTHER_VALUES[field.name]]
    elif choices := [choice for choice in get_args(kind) if isinstance(choice, str)]:
        arguments = [flag(field.name), next(choice for choice in choices if choice != value)]
    else:
        arguments = [flag(field.name), shown((value or 2) * 2)]
    after, _ = parse("--name", "x", *beside, *arguments)

    def flat(sweep):
        values = {
            (part.__name__, field.name): value_of(sweep, part, field.name)
            for part, field in (parameter.values for parameter in FIELDS)
        }
        if "--strengths" in arguments:  # as many trials
            del values["Sweep", "trials_per_regularizer"]
        return values

    changed = {name for name, one in flat(after).items() if one != flat(before)[name]}
    if field.name == "data":  # then the settings for the digits do not apply
        assert ("Trial", "data") in changed
    elif field.name == "storage":
        assert after.storage == "/elsewhere"
    else:
        assert changed == {(part.__name__, field.name)}


def test_the_choices_are_those_there_are():
    assert list(get_args(get_type_hints(Trial)["activation"])) == list(ACTIVATIONS)
    code = "from trainer.config import regularizer_names; import sys; print(*regularizer_names(), *sys.modules)"
    words = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert words.split()[: len(REGULARIZERS)] == sorted(REGULARIZERS)
    assert "torch" not in words.split()
    assert regularizer_names() == sorted(REGULARIZERS)


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "regularizers"])  # which are torch's
def test_help_and_wrong_flags_are_told_without_pytorch_ray_and_mlflow(name):
    code = (
        "import sys\nfrom sweeps.cli import main\n"
        "try:\n    status = main(sys.argv[1:])\nexcept SystemExit as ended:\n    status = ended.code\n"
        "print('loaded:', status, *sys.modules)"
    )
    wrong = {"sweep": ["--batch-size", "0"]}.get(name, ["--storrage", "x"])
    for arguments, expected in ((["--help"], "0"), (wrong, "2")):
        done = subprocess.run(
            [sys.executable, "-c", code, name, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
        status, *modules = done.stdout.rpartition("loaded: ")[2].split()
        assert status in (expected, "None" if expected == "0" else expected), done.stderr
        assert not HEAVY & set(modules)


@pytest.mark.parametrize(("arguments", "words"), [
    (("--regularizers", "l2,sim"), "--regularizers sim: is unknown; did you mean ssim"),
    (("--regularizers", "l2,l2"), "--regularizers l2,l2: a name stands twice"),
    (("--model", "resnet9"), "--model resnet9: is unknown; did you mean resnet8"),
    (("--batch-size", 0), "--batch-size 0: give a whole number of at least 1"),
    (("--workers-per-trial", 0), "--workers-per-trial 0: give a whole number of at least 1"),
    (("--extend", 1, "--name", "s", "--resume"), "--resume: ends what was begun, and --extend begins more"),
    (("--extend", 1), "--extend 1: needs --name"),
    (("--resume",), "--resume: needs --name"),
    (("--pgd-eps", 8), "--pgd-eps 8: give a fraction of the pixel range, such as 8/255"),
    (("--max-accuracy-drop", 2), "--max-accuracy-drop 2: give a fraction from 0 to below 1; 2 points are 0.02"),
    (("--preset", "original", "--workers-per-trial", 3), "--workers-per-trial 3: cannot share .* batch of 512; give"),
    (("--preset", "original", "--config", "sweep.yaml"), "--preset original: and --config both have settings"),
    (("--weight", 1, "--strengths", "1"), "--weight 1: .*leave out --strengths"),
    (("--weight", -1), "--weight -1: give a finite number, 0 or above"), (("--weight", "inf"), "finite"),
    (("--strengths", "1,10", "--trials-per-regularizer", 3), "--strengths 1,10: these are 2, and --trials-per-regul"),
    (("--ema",), "--ema: needs --checkpoint"), (("--head-steps", 3), "--head-steps 3: is for `new_head`"),
    (("--checkpoint", "w.pt"), "--checkpoint w.pt: needs --data"), (("--data", "x"), "--data x: needs --model"),
    (("--data", "x", "--model", "resnet8", "--new-head", "--checkpoint", "w.pt", "--head-steps", -1), "0 to leave"),
    (("--mean", "127,127,127"), "--mean 127,127,127: give three pixel fractions"),
    (("--local-dir", "x", "--storage", "y"), "--local-dir .*x: is for a --storage that is a URL"),
    (("--name", "a/b"), "--name 'a/b': give a plain name"), (("--seeds", 1), "--seeds 1: give at least 2"),
])  # fmt: skip
def test_what_cannot_be_is_told_in_terms_of_the_flags(arguments, words, capsys):
    assert run(lambda: parse(*arguments) and 0) == 2
    said = capsys.readouterr().err
    assert re.match(f"error: .*{words}", said)
    assert said.count("\n") == 1
    assert "`" not in said


@pytest.mark.parametrize(("arguments", "words"), [
    (("--regularizer", "l2"), "--regularizers"), (("--lerning-rate", 1), "--learning-rate"),
    (("--precision", "float16"), "float32"), (("--epochs", "x"), "give a whole number, not 'x'"),
    (("--pgd-eps", "2/0"), "a fraction such as 8/255, not '2/0'"),
    (("--strengths", "1;2"), "give numbers with commas between, not '1;2'"),
])  # fmt: skip
def test_flags_and_words_that_there_are_not_are_named_with_the_nearest(arguments, words, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(*arguments)
    assert ended.value.code == 2
    assert words in " ".join(capsys.readouterr().err.split())


def test_an_error_names_the_field_in_python_and_its_flag_in_a_command():
    error = FieldError("batch_size", 0, "raise it, or lower `workers`; `ray status` says more")
    assert str(error) == "batch_size=0: raise it, or lower workers; `ray status` says more"
    assert in_flags(error) == "--batch-size 0: raise it, or lower --workers-per-trial; `ray status` says more"
    assert in_flags(FieldError("flip", False, "x")) == "--flip no: x"
    assert in_flags(FieldError("new_head", True, "x")) == "--new-head: x"
    assert in_flags(UsageError("two\nlines, and `epochs`")) == "two lines, and --epochs"


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
    assert (trial.weight, sweep.scheduler, trial.flip) == (0.0, "asha", True)
    assert (trial.batch_size, trial.pgd_eps) == (64, 2 / 255), "nor of the digits"


def test_without_data_the_digits(tmp_path):
    sweep, asked = parse()
    assert sweep.trial == presets.digits()
    assert asked == command_line.Asked()
    assert parse("-v")[1].verbose
    for name in ("resnet8", "resnet18", "timm:test_efficientnet"):
        assert parse("--model", name)[0].trial.image_size == 32, "whatever the model"


def test_flags_that_an_earlier_sweep_does_not_heed_are_refused(asked, tmp_path):
    sweep = asked()
    sweep.save()

    def again(*arguments):
        return parse("--storage", tmp_path, "--name", "s", *arguments)[0]

    for arguments, words in (
        (("--resume", "--epochs", 3, "--seed", 1), "^--epochs, --seed: with --resume a sweep keeps the settings"),
        (("--resume", "--no-flip"), "^--no-flip|--flip: .* only --name, --storage, --verbose, --max-accuracy-drop are"),
        (("--resume", "--seeds", 3), "^--seeds: with --resume"), (("--resume", "--config", "x"), "^--config: with"),
        (("--resume", "--cache-size", 3, "--gpus-per-worker", 1), "^--gpus-per-worker, --cache-size: with --resume"),
        (("--extend", 1, "--keep", "all"), "^--keep: with --extend .* --seeds, --max-accuracy-drop, --max-concurr"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=words):
            again(*arguments)
    assert again("--resume", "--max-accuracy-drop", 0.05, "-v") == dataclasses.replace(sweep, max_accuracy_drop=0.05)
    assert again("--resume", "--epochs", 2, "--data", sweep.trial.data) == sweep, "they are as they were"
    more = again("--extend", 2, "--seeds", 3, "--max-concurrent", 1)
    assert more == dataclasses.replace(sweep, seeds=3, max_concurrent=1)


def test_a_sweep_whose_search_never_began_is_not_called_unknown(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s/.driver").touch()
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "old").mkdir()
    (tmp_path / "old/settings.json").write_text("{}")
    for name, words in (
        ("s", "ended before its search began.*give its command again"), ("evaluation", "no sweep"),
        ("old", "of an earlier version, which kept settings.json; begin another sweep"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=words):
            parse("--storage", tmp_path, "--name", name, "--resume")


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


def test_what_an_earlier_sweep_wrote_begins_another_and_flags_override_it(asked, tmp_path):
    first = asked("--seeds", 2, "--learning-rate", 0.5, "--workers-per-trial", 2, "--activation", "gelu")
    dataclasses.replace(first, extensions=(1,), source="w.pt").save()
    config = ("--config", tmp_path / "s/sweep.yaml")
    again, _ = parse(*config, "--name", "t")
    assert again == dataclasses.replace(first, name="t")
    assert parse(*config)[0].name != "s", "that name is taken"
    other, _ = parse(*config, "--name", "t", "--epochs", 7, "--cache-size", 3, "--model", "resnet50")
    expected = dataclasses.replace(
        first.trial, epochs=7, model="resnet50", mean=None, std=None, image_size=None
    )  # fmt: skip
    assert other.trial == expected, "another model is fed what it is made for"
    assert (other.placement.cache.size, other.placement.workers) == (3, 2)


@pytest.mark.parametrize(("text", "words"), [
    ("trial: {epoch: 3}", "sweep.yaml: epoch is unknown; did you mean epochs"),
    ("seedz: 3", "seedz is unknown; did you mean seeds"),
    ("seeds: many", "seeds: give a whole number, not 'many'"), ("seeds: 2.5", "seeds: 2.5 is of another kind"),
    ("seeds: true", "seeds: True is of another kind"), ("trial: 3", "trial holds 3"), ("[1]", "holds no settings"),
    ("a: [", "is not valid YAML"), ("scheduler: ashes", "scheduler=ashes: did you mean asha"),
])  # fmt: skip
def test_what_a_file_of_settings_says_wrong_is_named(text, words, tmp_path):
    (tmp_path / "sweep.yaml").write_text(text)
    with pytest.raises(UsageError, match=words):
        parse("--config", tmp_path / "sweep.yaml")
    with pytest.raises(UsageError, match="cannot be read"):
        parse("--config", tmp_path / "nothing.yaml")


def test_a_part_of_the_settings_by_hand_will_do(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "name: mine\ntrial: {learning_rate: 1e-2, pgd_eps: 4/255, weight_decay: 0}\nregularizers: [l2]\n"
        "placement: {cache: {size: 3}}\n"
    )
    sweep, _ = parse("--config", tmp_path / "mine.yaml")
    assert sweep.trial == presets.digits(learning_rate=0.01, pgd_eps=4 / 255, weight_decay=0.0)
    assert (sweep.name, sweep.regularizers, sweep.placement.cache.size) == ("mine", ("l2",), 3.0)


def test_the_command_lists_what_it_has_and_names_the_nearest(capsys):
    assert heatmap_sweeps([]) == heatmap_sweeps(["--help"]) == 0
    listed = capsys.readouterr().out
    assert all(f"\n  {name} " in listed for name in COMMANDS)
    assert heatmap_sweeps(["statsu", "--name", "x"]) == 2
    assert "did you mean status?" in capsys.readouterr().err


def test_every_command_looks_where_the_environment_says(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SWEEPS_STORAGE", str(tmp_path / "kept"))
    commands = [("sweep", "--resume"), ("status",), ("report",), ("resume-best",), ("flush",), ("rebuild",)]
    for name, *more in commands:
        assert heatmap_sweeps([name, "--name", "nothing", *more]) == 2
        assert f"no sweep 'nothing' under {tmp_path}/kept" in capsys.readouterr().err
