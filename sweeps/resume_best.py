"""Train the best trial of a sweep further, from its last checkpoint.

    python sweeps/resume_best.py --name SWEEP                # two more epochs
    python sweeps/resume_best.py --name SWEEP --trial 7 --epochs 10

Continues with the optimizer's state and the data order a longer trial would have had, in a new MLflow run that
names the old one, and prints its accuracy, robust accuracy and checkpoint. Interrupted, the same command goes on.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, arg

sys.path.insert(0, str(Path.home() / "heatmap-sweeps"))  # `ray submit` brings the script alone, without its project
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the script runs without being installed

from sweeps.environment import set_environment
from trainer.command import parse, run


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is to be trained.

    Args:
        name: name of the sweep, which has ended.
        trial: another trial than the pick, by its number or the beginning of its id.
        epochs: how many epochs more.
        storage: folder or URL of the sweep; that of SWEEPS_STORAGE, else ./runs, if not given.
        verbose: print what Ray and the workers say, too.
    """

    name: str
    trial: str | None = None
    epochs: int = 2
    storage: str | None = None
    verbose: Annotated[bool, FlagCreatePairsOff, arg(aliases=("-v",))] = False


def main(argv: Sequence[str] | None = None) -> int:
    """Train the trial further; the exit status."""
    return run(lambda: train_on(argv), "interrupted; the same command goes on from the last epoch")


def train_on(argv: Sequence[str] | None) -> int:
    """Train the trial further, and print what that did."""
    asked = parse(Asked, argv, prog="heatmap-sweeps resume-best", description=(__doc__ or "").partition("\n\n")[0])
    set_environment()  # before Ray is imported, which is once the flags are valid
    from sweeps.cluster import check_copy
    from sweeps.results import SweepResult
    from sweeps.summary import print_trained_on
    from sweeps.terminal import Terminal

    check_copy(__file__)
    result = SweepResult.load(asked.name, asked.storage)
    before = result.best() if asked.trial is None else result.trial(asked.trial)
    with Terminal().shown() as terminal:
        after = before.train_on(asked.epochs, terminal, asked.verbose)
        print_trained_on(before, after, terminal.console)
    return 0 if after.status == "finished" else 1


if __name__ == "__main__":
    sys.exit(main())
