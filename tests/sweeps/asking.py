"""The sweep that flags ask for, as the script has it."""

from sweeps import command_line


def parse(*arguments):
    """The sweep of these arguments, and what is to be done with it."""
    return command_line.parse([str(argument) for argument in arguments], "heatmap-sweeps sweep", "Compare.")
