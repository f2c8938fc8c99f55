"""Flags by their whole names, and those that may have been meant."""

import pytest

from trainer.arguments import Parser


@pytest.fixture
def parser():
    parser = Parser(prog="p")
    for flag in ("--learning-rate", "--batch-size", "--epochs", "--data", "--out"):
        parser.add_argument(flag)
    parser.add_argument("-v", "--verbose", action="store_true")
    return parser


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (("--lr", "0.01"), "did you mean --learning-rate?"),
        (("--epoch=3",), "did you mean --epochs?"),
        (("--batch_size", "3"), "did you mean --batch-size?"),
        (("--batchsize", "3"), "did you mean --batch-size?"),
        (("--output", "x"), "did you mean --out?"),
        (("--lr", "1", "--epoch", "3"), "did you mean --learning-rate or --epochs?"),
        (("--zzz",), "--help lists the flags"),
    ],
)
def test_an_unknown_flag_is_told_the_nearest(parser, capsys, given, meant):
    with pytest.raises(SystemExit) as stopped:
        parser.parse_args(given)
    assert stopped.value.code == 2
    assert f"unrecognized arguments: {' '.join(given)}; {meant}" in capsys.readouterr().err


def test_whole_names_are_taken(parser):
    given = parser.parse_args(["--learning-rate", "1", "-v"])
    assert (given.learning_rate, given.verbose) == ("1", True)
