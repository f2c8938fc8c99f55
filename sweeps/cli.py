"""The command `heatmap-sweeps`: `heatmap-sweeps status --name SWEEP` runs `sweeps.status`.

A command is imported once it is chosen.
"""

import difflib
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

if __name__ == "__main__":  # as a file, without being installed
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from trainer.command import command
from trainer.errors import UsageError

# Name: module, arguments that go before the user's, what it does.
COMMANDS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "sweep": ("sweeps.all_regularizers", (), "finetune one checkpoint with every regularizer, and rank them"),
    "status": ("sweeps.status", (), "show how far a sweep is"),
    "report": ("sweeps.report.__main__", (), "write the report of a sweep again"),
    "resume-best": ("sweeps.resume_best", (), "train the best trial of a sweep further"),
    "flush": ("sweeps.tracking.__main__", ("flush",), "send MLflow what it does not have of a sweep yet"),
    "rebuild": ("sweeps.tracking.__main__", ("rebuild",), "send MLflow everything of a sweep again"),
    "evaluate": ("trainer.evaluate.__main__", (), "measure accuracy, robustness and heatmaps of checkpoints"),
    "shards": ("trainer.shards.__main__", (), "write images into shards, or verify shards"),
    "regularizers": ("regularizers.__main__", (), "list the regularizers, or check one"),
}


@command()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that is named first; the exit status."""
    name, *arguments = (sys.argv[1:] if argv is None else list(argv)) or ["--help"]
    if name in ("-h", "--help"):
        print("usage: heatmap-sweeps COMMAND [OPTIONS]\n")
        for known, (_, _, help_) in COMMANDS.items():
            print(f"  {known:14}{help_}")
        print("\nheatmap-sweeps COMMAND --help lists the options of a command.")
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        advice = f"did you mean {near[0]}?" if near else f"choose from {', '.join(COMMANDS)}"
        raise UsageError(f"there is no command {name!r}; {advice}")
    module, before, _ = COMMANDS[name]
    status: int = import_module(module).main([*before, *arguments])
    return status


if __name__ == "__main__":
    sys.exit(main())
