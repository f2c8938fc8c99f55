"""The command `heatmap-sweeps`, which has every other: `heatmap-sweeps status --name SWEEP`.

What is imported for one command is imported once that is chosen.
"""

import difflib
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

if __name__ == "__main__":  # as a file, without being installed
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

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
        meant = f"did you mean {near[0]}? " if near else ""
        print(f"error: {name} is no command; {meant}There are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    module, before, _ = COMMANDS[name]
    return import_module(module).main([*before, *arguments])


if __name__ == "__main__":
    sys.exit(main())
