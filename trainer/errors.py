"""Errors that are the user's to mend; imports nothing, so that every process can know them."""

from typing import Any


class UsageError(ValueError):
    """A mistake the user can mend; the commands print it as one line and exit with status 2."""


class FieldError(UsageError):
    """A setting that cannot be, such as `batch_size=0: give a whole number of at least 1`.

    The commands print the flag instead of the field (`trainer.command`).

    Args:
        field: name of the setting.
        value: what was given.
        remedy: what is wrong and what to do; other settings stand in it in backticks, such as `lower 'epochs'` with
            backticks for quotes.
    """

    def __init__(self, field: str, value: Any, remedy: str) -> None:
        super().__init__(field, value, remedy)  # all three, so that it can be pickled
        self.field, self.value, self.remedy = field, value, remedy

    def __str__(self) -> str:
        return f"{self.field}={shown(self.value)}: {self.remedy.replace('`', '')}"


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
