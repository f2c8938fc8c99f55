"""Errors that are the user's to mend; imports next to nothing, so that every process can know them."""

import re
from collections.abc import Callable
from typing import Any

NAMED = re.compile("`([a-z_]+)`")  # a setting in a message


class UsageError(ValueError):
    """A mistake the user can mend; the commands print it as one line and exit with status 2.

    Settings stand in its message in backticks; Python shows their names, the commands show their flags.
    """

    def said(self, name: Callable[[str], str] = str) -> str:
        """The message, with each setting under the name that this function has for it."""
        return NAMED.sub(lambda found: name(found[1]), super().__str__())

    def __str__(self) -> str:
        return self.said()


class FieldError(UsageError):
    """A setting that cannot be, such as `batch_size=0: give a whole number of at least 1`.

    The commands print the flag instead of the field (`trainer.command`).

    Args:
        field: name of the setting.
        value: what was given.
        remedy: what is wrong and what to do.
    """

    def __init__(self, field: str, value: Any, remedy: str) -> None:
        super().__init__(field, value, remedy)  # all three, so that it can be pickled
        self.field, self.value, self.remedy = field, value, remedy

    def said(self, name: Callable[[str], str] = str) -> str:
        """The message, with each setting under the name that this function has for it."""
        python = name is str and (self.value is None or isinstance(self.value, bool))
        value = self.value if python else shown(self.value)
        return f"{name(self.field)}={value}: {NAMED.sub(lambda found: name(found[1]), self.remedy)}"


def shown(value: Any) -> str:
    """A value as the command line takes it: fractions of 255 as such, lists with commas between, None as `none`."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ",".join(f"{name}={shown(one)}" for name, one in value.items())
    if isinstance(value, list | tuple):
        return ",".join(map(shown, value))
    if isinstance(value, float) and 0 < abs(value) < 1 and float(f"{value:g}") != value:
        levels = round(value * 255)
        return f"{levels}/255" if levels / 255 == value else str(value)
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
