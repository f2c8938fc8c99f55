"""Settings of a file, such as the sweep.yaml of an earlier sweep."""

import dataclasses
import re

import pytest
from asking import parse

from sweeps import presets
from trainer.errors import FieldError, UsageError


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
    ("trial: {epoch: 3}", "there is no setting epoch; did you mean epochs?"),
    ("epochs: 3", "epochs belongs under trial:, indented"),
    ("size: 3", "size belongs under placement: and cache:, indented"),
    ("seedz: 3", "there is no setting seedz; did you mean seeds?"),
    ("seeds: many", 'seeds: give a whole number, not "many"'), ("seeds: 2.5", "seeds: give a whole number, not 2.5"),
    ("seeds: true", "seeds: give a whole number, not true"), ("trial: 3", "trial: give its settings, indented"),
    ("placement: [1]", "placement: give its settings, indented, not [1]"),
    ("trial: {augment: 1}", "augment: give true or false, not 1"),
    ("trial: {image_size: x}", 'image_size: give a whole number or null, not "x"'),
    ("strengths: 3", "strengths: give a list of numbers or null, not 3"),
    ("regularizers: [l2, 3]", 'regularizers: give text (in quotes), not ["l2", 3]'),
    ("fixed: [1]", "fixed: give names and numbers, indented, not [1]"),
    ("name: 3", "name: give text (in quotes), not 3"),
    ("name: ' '", "name: give text that is not empty, not \" \""),
    ("scheduler: 3", "scheduler: give rule, asha or none, not 3"),
    ("trial: {epochs: 0}", "epochs=0: give a whole number of at least 1"),
    ("trial: {weight: 1}\nallocation: adaptive", "weight=1: is that of every penalty and leaves nothing to search"),
    ("[1]", "has no settings; give a file such as"), ("seeds: 2001-13-01", "is not valid YAML (month must be"),
    ("a: [", "is not valid YAML (while parsing"), ("scheduler: ashes", "scheduler=ashes: did you mean asha?"),
    ("seeds: 3\ntrial:\n  epochs: 2\n  epochs: 3", "is not valid YAML (epochs is given twice"),
])  # fmt: skip
def test_what_a_file_of_settings_says_wrong_is_named(text, words, tmp_path):
    file = tmp_path / "sweep.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=f"^{re.escape(f'{file}: {words}')}"):
        parse("--config", file)
    with pytest.raises(UsageError, match="nothing.yaml: there is no such file$"):
        parse("--config", tmp_path / "nothing.yaml")


def test_a_wrong_flag_beside_a_file_is_the_flags_fault(tmp_path):
    (tmp_path / "sweep.yaml").write_text("trial: {epochs: 3}\nseeds: 2")
    with pytest.raises(FieldError, match="^epochs=0: give a whole number"):
        parse("--config", tmp_path / "sweep.yaml", "--epochs", 0)


def test_strengths_of_a_file_are_overridden_with_their_number(tmp_path):
    (tmp_path / "mine.yaml").write_text("strengths: [1, 10, 100]")
    sweep, _ = parse("--config", tmp_path / "mine.yaml", "--strengths", "2")
    assert (sweep.strengths, sweep.parts) == ((2.0,), (1,))
    assert dataclasses.replace(sweep, strengths=(1, 2)).parts == (2,)
    with pytest.raises(FieldError, match="strengths=1,2: one trial runs for each of the 2, but trials_per_regularizer"):
        dataclasses.replace(sweep, strengths=(1, 2), trials_per_regularizer=1)


def test_a_part_of_the_settings_by_hand_will_do(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "name: mine\ntrial: {learning_rate: 1e-2, pgd_eps: 4/255, weight_decay: 0}\nregularizers: [l2]\n"
        "placement: {cache: {size: 3}}\n"
    )
    sweep, _ = parse("--config", tmp_path / "mine.yaml")
    assert sweep.trial == presets.digits(learning_rate=0.01, pgd_eps=4 / 255, weight_decay=0.0)
    assert (sweep.name, sweep.regularizers, sweep.placement.cache.size) == ("mine", ("l2",), 3.0)
