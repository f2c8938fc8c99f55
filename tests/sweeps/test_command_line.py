"""The command line of a sweep: one flag for each field, and the sweep it asks for."""

import dataclasses
import functools
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from asking import parse

from regularizers import REGULARIZERS
from sweeps import presets
from sweeps.command_line import NO_FLAG
from sweeps.settings import Sweep
from trainer.cache import ShardCache
from trainer.command import flag
from trainer.config import Trial, regularizer_names
from trainer.errors import shown
from trainer.placement import Placement
from trainer.resnet import ACTIVATIONS

ROOT = Path(__file__).parents[2]
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
    "momentum": "0.5",
}  # fmt: skip
BESIDE = {  # what some fields need to make sense
    "new_head": ["--data", "/shards", "--checkpoint", "w.pt"], "ema": ["--data", "/shards", "--checkpoint", "w.pt"],
    "checkpoint": ["--data", "/shards"], "local_dir": ["--storage", "s3://bucket"], "head_steps": [],
}  # fmt: skip


@functools.cache
def as_usual(*beside):
    return parse("--name", "x", *beside)[0]


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
    elif shown(default) == "" or (default is None and "by default" in words):
        assert "(default" not in words, "it is said already"
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
