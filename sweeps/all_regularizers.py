"""Compare every input-gradient regularizer by finetuning one checkpoint with each of them.

    python sweeps/all_regularizers.py                      # handwritten digits, no download, a few minutes
    python sweeps/all_regularizers.py --data SHARDS --model resnet50 --checkpoint resnet50.pth --epochs 4

`heatmap-sweeps sweep` is the same. Prints a ranked table (regularizer, weight, accuracy, robust accuracy, heatmap
similarity), the pick, and the commands to open the MLflow UI and to train the pick further.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path.home() / "heatmap-sweeps"))  # `ray submit` brings the script alone, without its project
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the script runs without being installed

from sweeps.command_line import parse
from sweeps.environment import check_copy, set_environment
from trainer.command import command


@command()
def main(argv: Sequence[str] | None = None) -> int:
    """Run, resume or extend the sweep, and print how it ended; the exit status."""
    sweep, asked = parse(argv, "heatmap-sweeps sweep", __doc__ or "")
    check_copy(__file__)
    if asked.new:
        sweep.check_start()
    set_environment()  # before Ray is imported, which is once all that was asked for is valid
    from sweeps.summary import interrupted, print_result
    from sweeps.terminal import Terminal

    with Terminal().shown() as terminal:
        try:
            if asked.resume:
                result = sweep.resume(terminal, asked.verbose)
            elif asked.extend is not None:
                result = sweep.extend(asked.extend, terminal, asked.verbose)
            else:
                result = sweep.run(terminal, asked.verbose)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(interrupted(sweep)) from None
        print_result(result, terminal.console)
    return 0 if result.complete else 1


if __name__ == "__main__":
    sys.exit(main())
