"""Train the best trial of a sweep further, from its last checkpoint.

    python sweeps/resume_best.py --name SWEEP                # two more epochs; or heatmap-sweeps resume-best
    python sweeps/resume_best.py --name SWEEP --trial 7 --epochs 10

Continues with the optimizer's state and the data order of a longer trial, in a new MLflow run that names the old one,
and prints its accuracy, robust accuracy and checkpoint. After an interruption the same command goes on.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path.home() / "heatmap-sweeps"))  # `ray submit` brings the script alone, without its project
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the script runs without being installed

from sweeps.command_line import TrainOn
from sweeps.environment import check_copy, set_environment
from trainer.command import command, parse


@command("interrupted; the same command goes on from the last epoch")
def main(argv: Sequence[str] | None = None) -> int:
    """Train the trial further, and print what that did; the exit status."""
    asked = parse(TrainOn, argv, prog="heatmap-sweeps resume-best", description=__doc__ or "")
    check_copy(__file__)
    from sweeps.results import SweepResult

    result = SweepResult.load(asked.name, asked.storage)
    before = result.best() if asked.trial is None else result.trial(asked.trial)
    set_environment()  # before Ray is imported, which is once all that was asked for is valid
    from sweeps.summary import print_trained_on
    from sweeps.terminal import Terminal

    with Terminal().shown() as terminal:
        after = before.train_on(asked.epochs, terminal, asked.verbose)
        print_trained_on(before, after, terminal.console)
    return 0 if after.status == "finished" else 1


if __name__ == "__main__":
    sys.exit(main())
