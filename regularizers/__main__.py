"""List the regularizers, or check one.

    python -m regularizers                          # formula, pull, range of weights and source of each
    python -m regularizers check charbonnier.py     # a file of your own: ok or FAILED, with the remedy, in seconds
    python -m regularizers check ssim               # one of the list
    python -m regularizers --markdown               # the table of docs/method.md

`heatmap-sweeps regularizers` is the same. A check looks at shape, precision, NaN, gradient, independence, image size
and cost, and draws what the regularizer pulls a heatmap towards.
"""

import argparse
import difflib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from regularizers._names import RegularizerImportError, regularizer_names


class _WrongUsage(Exception):
    """A mistake in the command line."""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as in the other commands, whose code this package does not import."""

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments: "):
            flag = message.removeprefix("unrecognized arguments: ").split()[0].partition("=")[0]
            near = difflib.get_close_matches(flag, ("--markdown", "--out"), 1)
            message = f"{flag}: there is no such flag; did you mean {near[0] if near else '--help'}?"
        raise _WrongUsage(message.removeprefix("argument "))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status: 1 if a check failed, 2 if there is nothing to check."""
    try:
        return _run(arguments)
    except (_WrongUsage, RegularizerImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(arguments: Sequence[str] | None) -> int:
    parser = _Parser(
        "heatmap-sweeps regularizers", "%(prog)s [-h] [--markdown] [check FILE_OR_NAME [--out PNG]]", __doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("check", nargs="*", metavar="check FILE_OR_NAME", help="a .py file anywhere, or a listed name")
    parser.add_argument("--markdown", action="store_true", help="list them as the table of docs/method.md")
    parser.add_argument("--out", metavar="PNG", type=Path, help="of the picture (default: check-NAME.png)")
    given = parser.parse_intermixed_args(arguments)
    command, *which = given.check or ["list"]
    if given.check and (command != "check" or len(which) != 1):
        parser.error(f"{' '.join(given.check)}: give check FILE_OR_NAME, or neither for the list")
    if which and given.markdown or given.out and not which:
        parser.error("--markdown is for the list alone, and --out for a check")
    if which and not (which[0].endswith(".py") or os.sep in which[0] or which[0] in regularizer_names()):
        near = difflib.get_close_matches(which[0], regularizer_names(), n=1)
        advice = f"did you mean {near[0]}?" if near else f"choose from {', '.join(regularizer_names())}"
        parser.error(f"there is no regularizer {which[0]!r}; {advice} (a file is given with its .py)")
    from regularizers import _commands  # with PyTorch, once the flags are valid

    if not which:
        _commands.show_list(given.markdown)
        return 0
    regularizer = _commands.find(which[0])()
    return _commands.check(regularizer, given.out or Path(f"check-{regularizer.name}.png"))


if __name__ == "__main__":
    sys.exit(main())
