"""Train the best trial of a sweep further, from its last checkpoint.

    python sweeps/resume_best.py --name SWEEP                # two more epochs
    python sweeps/resume_best.py --name SWEEP --trial ID --epochs 10

Continues with the optimizer's state and the data order a longer trial would have had, in a new MLflow run that
names the old one, and prints its accuracy, robust accuracy and checkpoint. Interrupted, the same command goes on.
"""

import argparse
import dataclasses
import math
import os
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path.home() / "heatmap-sweeps"))  # `ray submit` brings the script alone, without its project
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the script runs without being installed

from sweeps.environment import set_environment

set_environment()  # before Ray is imported

from sweeps.callback import trial_ended
from sweeps.capacity import slots, wait_for_machines, wait_for_room
from sweeps.checkpoints import only_weights
from sweeps.cluster import check_copy, ray_cluster, where
from sweeps.events import SweepEnded, TrialStarted
from sweeps.ranking import Row
from sweeps.recording import start_sweep
from sweeps.settings import Sweep, driving
from sweeps.shared import check_shared
from trainer.arguments import Parser
from trainer.config import UsageError
from trainer.locations import absolute, read_json
from trainer.ray_driver import run_trial


def parse() -> argparse.Namespace:
    """Command line."""
    parser = Parser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--name", required=True, help="of the sweep")
    parser.add_argument(
        "--trial", metavar="ID", help="another trial of it than the pick; the beginning of its id will do"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="print what Ray and the workers say, too")
    parser.add_argument("--epochs", type=int, default=2, help="how many more (default 2)")
    parser.add_argument(
        "--storage",
        metavar="WHERE",
        default=os.environ.get("SWEEPS_STORAGE", "runs"),
        help="of the sweep (default: that of SWEEPS_STORAGE, else ./runs)",
    )
    return parser.parse_args()


def choose(sweep: Sweep, trial_id: str | None) -> Row:
    """The pick of the sweep or the trial asked for.

    Raises:
        UsageError: if the sweep has no result, or the trial no checkpoint.
    """
    result = read_json(f"{sweep.folder}/result.json")
    if result is None:
        raise UsageError(f"sweep {sweep.name} has not ended; continue it with sweeps/all_regularizers.py --resume")
    wanted = trial_id or result["pick"]
    if wanted is None:
        raise UsageError(f"sweep {sweep.name} has no pick; name a trial with --trial")
    rows = {row["trial_id"]: Row(**row) for row in result["trials"]}
    longer = [trial for trial in rows if trial.startswith(wanted)]
    if wanted not in rows and len(longer) == 1:
        wanted = longer[0]
    if wanted not in rows:
        raise UsageError(f"--trial {wanted}: sweep {sweep.name} has {', '.join(rows)}")
    row = rows[wanted]
    if not row.checkpoint:
        raise UsageError(f"--trial {wanted}: it {row.status} and left no checkpoint")
    if only_weights(sweep, wanted):
        start = ["--data", str(sweep.trial.data), "--model", sweep.trial.model, "--checkpoint", row.checkpoint]
        raise UsageError(
            f"--trial {wanted}: of it only the weights were kept, as --keep {sweep.keep} says, and training on needs "
            f"the optimizer's state; start a sweep from them with {shlex.join(start)}, or keep more of the next with "
            "--keep all"
        )
    return row


def train_on(sweep: Sweep, row: Row, epochs: int) -> int:
    """Continue the trial on the cluster that is joined, up to so many epochs; the exit status."""
    name = f"resume-{row.trial_id}-to-{epochs}"  # the same command goes on with what it had begun
    trial = dataclasses.replace(
        sweep.trial, regularizer=row.regularizer, weight=row.weight, seed=row.seed, epochs=epochs
    )
    recording = start_sweep(sweep, {})
    print(f"continuing {trial.label} ({row.trial_id}) to epoch {epochs}")
    recording.append(
        TrialStarted(
            trial_id=name,
            name=f"{trial.label} resumed",
            part="",
            regularizer=row.regularizer,
            weight=row.weight,
            strength=row.strength,
            seed=row.seed,
            epochs=epochs,
            digest=trial.digest(),
            workers=sweep.placement.workers,
            resumed_from=row.trial_id,
            start=row.checkpoint,
        )
    )
    recording.open()
    try:
        result = run_trial(
            trial.to_dict(),
            placement=sweep.placement,
            storage=sweep.trials_folder,
            name=name,
            start=row.checkpoint,
        )
        ended = trial_ended(sweep, name, result.metrics or {})
        recording.append(ended)
    finally:
        recording.append(SweepEnded(status="FINISHED"))  # it was before, whatever becomes of this trial
        recording.close()
    if ended.error:
        print(f"error: {ended.error}", file=sys.stderr)
        return 1
    metrics, checkpoint = ended.metrics, ended.checkpoint
    for split in ("val", "test"):
        now = [100 * metrics[f"{split}/{key}"] for key in ("accuracy", "robust_accuracy")]
        before = [100 * row.metrics.get(f"{split}/{key}", math.nan) for key in ("accuracy", "robust_accuracy")]
        print(f"on {split}: accuracy {before[0]:.1f} → {now[0]:.1f} %, robust {before[1]:.1f} → {now[1]:.1f} %")
    print(f"checkpoint: {checkpoint}")
    if queued := recording.queued():
        print(queued)
    return 0


def main() -> int:
    """Continue the trial; the exit status."""
    given = parse()
    try:
        check_copy(__file__)
        if given.epochs < 1:
            raise UsageError(f"--epochs {given.epochs}: give a whole number of at least 1")
        sweep = Sweep.load(absolute(given.storage), given.name)
        with driving(sweep):
            row = choose(sweep, given.trial)
            print(where(), flush=True)
            with ray_cluster(verbose=given.verbose, stock=not sweep.placement.lean):
                wait_for_machines(print)
                slots(sweep)
                wait_for_room(sweep.placement, print)
                check_shared(sweep.storage, sweep.trial)
                return train_on(sweep, row, sweep.trial.epochs + given.epochs)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last epoch", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
