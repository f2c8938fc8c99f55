"""Command lines that take no flag by its beginning, and name those that are near an unknown one."""

import argparse
import difflib
from typing import Any, NoReturn

UNKNOWN = "unrecognized arguments: "  # how argparse begins


class Parser(argparse.ArgumentParser):
    """An argparse parser that is strict about names: `--epoch` is no `--epochs`, but may have been meant."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{"allow_abbrev": False} | options)

    def error(self, message: str) -> NoReturn:
        """Leave with the message and, for flags that are none, those that are near."""
        if message.startswith(UNKNOWN):
            asked = [word for word in message.removeprefix(UNKNOWN).split() if word.startswith("--")]
            near = dict.fromkeys(flag for word in asked for flag in nearest(word, self._option_string_actions))
            message += f"; did you mean {' or '.join(near)}?" if near else "; --help lists the flags"
        super().error(message)


def nearest(flag: str, known: Any) -> list[str]:
    """The flags that an unknown one may mean, two at most.

    Args:
        flag: flag as it was given, such as `--lr` or `--epoch=3`.
        known: flags there are; those of one letter count for nothing.
    """
    asked = flag.partition("=")[0].removeprefix("--").replace("_", "-").lower()
    names = [name.removeprefix("--") for name in known if name.startswith("--")]
    sure = [
        name
        for name in names
        if asked == "".join(word[0] for word in name.split("-")) or name.startswith(asked) or asked.startswith(name)
    ]
    return [f"--{name}" for name in (sure or difflib.get_close_matches(asked, names, 2))[:2]]
