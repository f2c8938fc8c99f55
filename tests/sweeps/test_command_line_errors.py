"""What a command line of a sweep gets wrong is one line, in terms of its flags."""

import re

import pytest
from asking import parse
from test_command_line import OTHER_VALUES

from trainer.command import command, flag, in_flags
from trainer.errors import NAMED, FieldError, UsageError


@command()
def asks(argv):
    """The script up to where it would begin."""
    sweep, asked = parse(*argv)
    if asked.new:
        sweep.check_start()
    return 0


def said(arguments, capsys):
    """The one line that is printed."""
    assert asks([str(argument) for argument in arguments]) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    assert not NAMED.search(line)
    return line.removeprefix("error: ").strip()


@pytest.mark.parametrize(("arguments", "words"), [
    (("--regularizers", "l2,sim"), "--regularizers sim: is unknown; did you mean ssim"),
    (("--regularizers", "l3"), "--regularizers l3: is unknown; did you mean l2?"),
    (("--regularizers", "SSIM"), "--regularizers SSIM: is unknown; did you mean ssim"),
    (("--seed", -1), "--seed -1: give a whole number from 0"), (("--seed", 2**31), "--seed 2147483648: give a whole"),
    (("--gpus-per-worker", "nan"), "--gpus-per-worker nan: give a finite"),
    (("--cpus-per-worker", 0), "--cpus-per-worker 0: give a finite number above 0"),
    (("--cpus-per-worker", "inf"), "--cpus-per-worker inf: give a finite number above 0"),
    (("--momentum", 1), "--momentum 1: give a fraction, from 0 to below 1"),
    (("--image-size", 0), "--image-size 0: give a whole number of at least 1"),
    (("--name", "a" * 201), "--name a+: give a name of at most 200 bytes"),
    (("--name", "ä" * 101), "--name ä+: give a name of at most 200 bytes"),
    (("--storage", "foo://bar"), "--storage foo://bar: give a folder or a URL of s3, gs"),
    (("--name=-a",), "--name '-a': give a name without"), (("--name", "a`b"), "--name 'a.b': give a name without"),
    (("--regularizers", "l2,l2"), "--regularizers l2,l2: give l2 only once"),
    (("--strengths", "1,10,1.0"), "--strengths 1,10,1: give 1 only once"),
    (("--model", "resnet9"), "--model resnet9: is unknown; did you mean resnet8"),
    (("--batch-size", 0), "--batch-size 0: give a whole number of at least 1"),
    (("--workers-per-trial", 0), "--workers-per-trial 0: give a whole number of at least 1"),
    (("--extend", 1, "--name", "s", "--resume"), "--resume: completes the trials of a sweep, and --extend adds trials"),
    (("--extend", 1), "--extend 1: needs --name"), (("--extend", 0), "--extend 0: give a whole number of at least 1"),
    (("--resume",), "--resume: needs --name"),
    (("--pgd-eps", 8), "--pgd-eps 8: give a fraction of the pixel range, such as 8/255"),
    (("--pgd-eps", "300/255"), "--pgd-eps 1.176.*: give a fraction of the pixel range, such as 2/255"),
    (("--max-accuracy-drop", 2), "--max-accuracy-drop 2: give a fraction from 0 to below 1; 2 points are 0.02"),
    (("--preset", "original", "--workers-per-trial", 3), "--workers-per-trial 3: cannot share .* batch of 512; give"),
    (("--preset", "original", "--config", "sweep.yaml"), "--preset original: and --config both have settings"),
    (("--weight", 1, "--strengths", "1"), "--weight 1: .*leave it out, or --strengths"),
    (("--weight", -1), "--weight -1: give a finite number, 0 or above"), (("--weight", "-inf"), ".*finite"),
    (("--strengths", "1,10", "--trials-per-regularizer", 3), "--strengths 1,10: one trial .* of the 2, but --trials"),
    (("--ema",), "--ema: needs --checkpoint"), (("--head-steps", 3), "--head-steps 3: needs --new-head"),
    (("--checkpoint", "w.pt"), "--checkpoint w.pt: needs --data"), (("--data", "x"), "--data x: needs --model"),
    (("--data", "x", "--model", "resnet8", "--new-head", "--checkpoint", "w.pt", "--head-steps", -1), ".*0 leaves the"),
    (("--mean", "127,127,127"), "--mean 127,127,127: give three pixel fractions"),
    (("--local-dir", "x", "--storage", "y"), "--local-dir .*x: needs a --storage that is a URL"),
    (("--name", "a/b"), "--name 'a/b': give a name without /"), (("--seeds", 1), "--seeds 1: give at least 2"),
    (("--name", "a "), "--name 'a ': give a name without /"),
    (("--fixed", "psnr_hvs.error=7"), "--fixed psnr_hvs.error=7: give 0"),
    (("--fixed", "psnr_hvs.eror=0.5"), "--fixed psnr_hvs.eror: .*did you mean psnr_hvs.error?"),
    (("--fixed", "a=1", "--regularizers", "l2"), "--fixed a: no regularizer .*; they have none but the weight"),
    (("--strengths", "1e9"), r"--strengths 1e\+09: give numbers from 0.1 to 1000"),
])  # fmt: skip
def test_what_cannot_be_is_told_in_terms_of_the_flags(arguments, words, capsys):
    assert re.match(words, said(arguments, capsys))


@pytest.mark.parametrize(("arguments", "line"), [
    (("--regularizer", "l2"), "--regularizer: there is no such flag; did you mean --regularizers?"),
    (("--lerning-rate", 1), "--lerning-rate: there is no such flag; did you mean --learning-rate?"),
    (("--epoch=3", "--no-flip"), "--epoch: there is no such flag; did you mean --epochs?"),
    (("foo", "--epoch", 3), "--epoch: there is no such flag; did you mean --epochs?"),
    (("-x",), "-x: there is no such flag; --help lists the flags"),
    (("--flip=3",), "'3' belongs to no flag; --help lists the flags"),
    (("--", "--epochs", 3), "--: leave it out; there are flags alone"),
    (("--precision", "float16"), "--precision: give float32 or bfloat16, not 'float16'; did you mean bfloat16?"),
    (("--preset", "orginal"), "--preset: give original, not 'orginal'; did you mean original?"),
    (("--epochs", "x"), "--epochs: give a whole number, not 'x'"),
    (("--epochs", 2, 3), "--epochs: give one value, not '2', '3'"),
    (("--regularizers", "l2", "ssim"), "--regularizers: separate values by commas: l2,ssim"),
    (("--regularizers", "l2,", "ssim"), "--regularizers: separate values by commas: l2,ssim"),
    (("--activation", "Gelu"), "--activation: give relu, gelu, softplus or silu, not 'Gelu'; did you mean gelu?"),
    (("--epochs", "--no-flip"), "--epochs: give a whole number"),
    (("--pgd-eps", "2/0"), "--pgd-eps: give a number, or a fraction such as 8/255, not '2/0'"),
    (("--strengths", "1;2"), "--strengths: give numbers with commas between, not '1;2'"),
    (("--fixed", "a=1,a=2"), "--fixed: give names, each once, and numbers, such as a=1,b=2, not 'a=1,a=2'"),
    (("--fixed", "a=1", "--fixed=b=2"), "--fixed is given 2 times; give all values behind one of them"),
])  # fmt: skip
def test_flags_and_words_that_there_are_not_are_named_with_the_nearest(arguments, line, capsys):
    assert said(arguments, capsys) == line


@pytest.mark.parametrize("name", [name for name in OTHER_VALUES if name != "mean"] + ["config", "preset"])
def test_nothing_is_given_for_no_flag(name, capsys):
    for empty in ("", " "):
        assert said((f"{flag(name)}={empty}",), capsys).startswith(f"{flag(name)}: give ")


def test_flags_are_taken_as_people_write_them():
    sweep, asked = parse("--batch_size=3", "--pgd_eps", ".5", "--no_augment", "--epochs", 3, "--epochs", 4, "-v")
    trial = sweep.trial
    assert (trial.batch_size, trial.pgd_eps, trial.augment, trial.epochs, asked.verbose) == (3, 0.5, False, 4, True)


def test_an_error_names_the_field_in_python_and_its_flag_in_a_command():
    error = FieldError("batch_size", 0, "raise it, or lower `workers`; `ray status` says more")
    assert str(error) == "batch_size=0: raise it, or lower workers; `ray status` says more"
    assert in_flags(error) == "--batch-size 0: raise it, or lower --workers-per-trial; `ray status` says more"
    assert in_flags(FieldError("flip", False, "x")) == "--flip no: x"
    assert (str(FieldError("flip", False, "x")), str(FieldError("trial", None, "x"))) == (
        "flip=False: x",
        "trial=None: x",
    )
    assert in_flags(FieldError("new_head", True, "x")) == "--new-head: x"
    assert in_flags(UsageError("two\nlines, and `epochs`")) == "two lines, and --epochs"
