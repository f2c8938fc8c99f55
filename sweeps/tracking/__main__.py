"""Send MLflow what it does not have of a sweep.

    heatmap-sweeps flush                      # of all sweeps under ./runs, what is still missing
    heatmap-sweeps flush --name SWEEP         # of one; or python -m sweeps.tracking flush
    heatmap-sweeps rebuild --name SWEEP       # everything again, from the sweep's storage alone

Prints what was sent of each run. May be run again, and while the sweep runs. The exit status is 2 if no server answers.
"""

import logging
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from sweeps.events import log_in
from sweeps.folder import no_sweep, sweeps_in
from sweeps.settings import Sweep, usual_storage
from trainer.command import command, in_flags, parse
from trainer.errors import UsageError
from trainer.locations import absolute


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is to be sent.

    Args:
        name: name of one sweep; by default all of them.
        storage: folder or URL of the sweeps; by default that of SWEEPS_STORAGE, else ./runs.
        tracking_uri: address of MLflow; by default the one the sweep began with.
    """

    name: str | None = None
    storage: str | None = None
    tracking_uri: str | None = None


def choose(storage: str, name: str | None) -> list[str]:
    """Names of the sweeps to look at.

    Raises:
        UsageError: if there is no such sweep.
    """
    known = sweeps_in(storage)
    chosen = [sweep for sweep in known if name in (None, sweep)]
    if not chosen:
        raise no_sweep(name, storage)
    return chosen


def send(storage: str, name: str, uri: str | None, again: bool) -> bool:
    """Send what MLflow does not have of one sweep, or everything; whether MLflow took it.

    Raises:
        UsageError: if the server does not answer, another process is sending, or there is no event log.
    """
    sweep = Sweep.load(name, storage)
    uri, local = uri or sweep.mlflow, sweep.local_folder
    log = log_in(sweep.folder, local)
    if not log.size():
        raise UsageError(f"{name}: there is no event log in {local}; run this on the machine that drove the sweep")
    from sweeps.tracking.server import reason
    from sweeps.tracking.upload import Uploader

    sent: Counter[str] = Counter()
    uploader = Uploader(sweep.folder, local, log, uri, lambda run, points: sent.update({run: points}))
    try:
        if not uploader.send(patience=120, again=again):
            raise UsageError(f"{name}: another process is still sending; run this again to see that nothing is left")
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"{name}: MLflow at {uri} does not answer; what it lacks stays in the storage ({reason(error)})"
        ) from None
    finally:
        for trial, points in sent.items():
            print(f"{name}: sent {points} values of {trial}")
    for trial, why in uploader.refused.items():
        print(f"{name}: MLflow refuses something of {trial}: {why}", file=sys.stderr)
    if not sent and not uploader.refused:
        print(f"{name}: MLflow has everything")
    return not uploader.refused


REBUILD = """Send MLflow everything of a sweep again, from the sweep's storage alone.

    heatmap-sweeps rebuild --name SWEEP       # of one sweep; or python -m sweeps.tracking rebuild
    heatmap-sweeps rebuild                    # of all sweeps under ./runs

For a database that was lost or is new. Prints what was sent of each run. The exit status is 2 if no server answers.
"""


@command()
def main(argv: Sequence[str] | None = None) -> int:
    """Send what is missing of all sweeps that are asked for; the exit status."""
    words = sys.argv[1:] if argv is None else list(argv)
    name = words.pop(0) if words[:1] in (["flush"], ["rebuild"]) else "flush"
    description = REBUILD if name == "rebuild" else __doc__ or ""
    asked = parse(Asked, words, prog=f"heatmap-sweeps {name}", description=description)
    for logger in ("alembic", "mlflow"):
        logging.getLogger(logger).setLevel(logging.WARNING)
    storage = absolute(asked.storage or usual_storage())
    sweeps = choose(storage, asked.name)
    status = 0
    for sweep in sweeps:  # one that cannot be read keeps no other from being sent
        try:
            status = max(status, 0 if send(storage, sweep, asked.tracking_uri, name == "rebuild") else 1)
        except UsageError as error:
            print(f"error: {in_flags(error)}", file=sys.stderr)
            status = 2
    return status


if __name__ == "__main__":
    sys.exit(main())
