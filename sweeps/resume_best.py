"""Train the best trial of a sweep further, from its last checkpoint.

    python sweeps/resume_best.py --name SWEEP                # two more epochs
    python sweeps/resume_best.py --name SWEEP --trial ID --epochs 10

Continues with the optimizer's state and the data order a longer trial would have had, in a new MLflow run that
names the old one, and prints its accuracy, robust accuracy and checkpoint.
"""

import argparse
import dataclasses
import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path.home() / "heatmap-sweeps"))  # `ray submit` brings the script alone, without its project
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the script runs without being installed

from sweeps.callback import trial_name
from sweeps.capacity import slots, wait_for_machines, wait_for_room
from sweeps.cluster import check_copy, ray_cluster, where
from sweeps.ranking import Row
from sweeps.settings import Sweep
from sweeps.shared import check_shared
from sweeps.tracking import start_sweep
from trainer.config import UsageError
from trainer.ray_trial import failure_of, run_trial


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--name", required=True, help="of the sweep")
    parser.add_argument("--trial", metavar="ID", help="another trial of it than the pick")
    parser.add_argument("--epochs", type=int, default=2, help="how many more (default 2)")
    parser.add_argument(
        "--storage",
        default=os.environ.get("SWEEPS_STORAGE", "runs"),
        help="the sweep's storage folder (default: that of SWEEPS_STORAGE, else ./runs)",
    )
    return parser.parse_args()


def choose(sweep: Sweep, trial_id: str | None) -> Row:
    """The pick of the sweep or the trial asked for.

    Raises:
        UsageError: if the sweep has no result, or the trial no checkpoint.
    """
    path = sweep.folder / "result.json"
    if not path.exists():
        raise UsageError(f"sweep {sweep.name} has not ended; continue it with sweeps/all_regularizers.py --resume")
    result = json.loads(path.read_text())
    wanted = trial_id or result["pick"]
    if wanted is None:
        raise UsageError(f"sweep {sweep.name} has no pick; name a trial with --trial")
    rows = {row["trial_id"]: Row(**row) for row in result["trials"]}
    if wanted not in rows:
        raise UsageError(f"--trial {wanted}: sweep {sweep.name} has {', '.join(rows)}")
    if not rows[wanted].checkpoint:
        raise UsageError(f"--trial {wanted}: it {rows[wanted].status} and left no checkpoint")
    return rows[wanted]


def go_on(sweep: Sweep, row: Row, more: int) -> int:
    """Train a trial further.

    Args:
        sweep: the one it belongs to.
        row: the trial.
        more: epochs.

    Returns:
        The exit status.
    """
    name = f"resume-{row.trial_id}-{time.strftime('%Y%m%d-%H%M%S')}"
    tracking = start_sweep(sweep.tracking_uri, sweep.name, {}, Path(sweep.storage))
    epochs = sweep.trial.epochs + more
    trial = dataclasses.replace(
        sweep.trial, regularizer=row.regularizer, weight=row.weight, seed=row.seed, epochs=epochs
    )
    label = f"{trial_name(row.regularizer, row.weight)} resumed"
    origin = row.run or tracking.run_of(row.trial_id) or row.trial_id  # no run yet: MLflow was away all the time
    recorder = tracking.trial(name, label, trial.to_dict(), {"resumed_from": origin, "start": row.checkpoint})
    print(f"continuing {label.removesuffix(' resumed')} ({row.trial_id}) to epoch {epochs}")
    state, checkpoint = "failed", ""
    tracking.open()
    try:
        result = run_trial(
            trial,
            placement=sweep.placement,
            storage=str(sweep.folder / "trials"),
            name=name,
            recorder=recorder,
            start=row.checkpoint,
        )
        reason = failure_of(str(sweep.folder / "trials" / name))
        if reason is not None:
            print(f"error: {reason}", file=sys.stderr)
            return 1
        state, checkpoint = "finished", result.checkpoint.path if result.checkpoint else ""
    finally:
        tracking.end_trial(name, state, {"checkpoint": checkpoint})
        tracking.end("FINISHED")
        tracking.close()
    metrics = result.metrics or {}
    print(f"accuracy {metrics['val/accuracy']:.3f}, robust accuracy {metrics['val/robust_accuracy']:.3f} on val")
    print(f"checkpoint: {checkpoint}")
    if unheard := tracking.unheard():
        print(unheard)
    return 0


def main() -> int:
    """Continue the trial; the exit status."""
    given = parse()
    try:
        check_copy(__file__)
        if given.epochs < 1:
            raise UsageError(f"--epochs {given.epochs}: give a whole number of at least 1")
        sweep = Sweep.load(str(Path(given.storage).expanduser().resolve()), given.name)
        row = choose(sweep, given.trial)
        print(where(), flush=True)
        wait_for_machines(print)
        with ray_cluster():
            slots(sweep)
            wait_for_room(sweep.placement, print)
            check_shared(sweep.storage, sweep.trial)
            return go_on(sweep, row, given.epochs)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
