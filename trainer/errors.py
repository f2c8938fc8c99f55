"""Errors that are the user's to mend; imports nothing, so that every process can know them."""


class UsageError(ValueError):
    """A mistake the user can mend; entry scripts print it as one line and exit with status 2."""
