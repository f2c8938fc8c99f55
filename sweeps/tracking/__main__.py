"""Send MLflow what it does not have of a sweep.

    python -m sweeps.tracking flush                      # of all sweeps under ./runs, what is still missing
    python -m sweeps.tracking flush --name SWEEP         # of one
    python -m sweeps.tracking rebuild --name SWEEP       # everything again, from the sweep's storage alone

Prints what was sent of each run. May be run again, and while the sweep runs. Exit status 2 if no server answers.
"""

import logging
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tyro.conf import Positional

from sweeps.events import log_in
from sweeps.folder import sweeps_in
from sweeps.settings import Sweep, usual_storage
from trainer.command import parse, run
from trainer.errors import UsageError
from trainer.locations import absolute


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is to be sent.

    Args:
        command: flush sends what MLflow does not have yet, rebuild everything again, to a new or an emptied MLflow.
        storage: folder or URL of the sweeps; that of SWEEPS_STORAGE, else ./runs, if not given.
        name: name of one sweep; all of them if not given.
        tracking_uri: address of MLflow; that of MLFLOW_TRACKING_URI, else the sweep's own, if not given.
    """

    command: Positional[Literal["flush", "rebuild"]]
    storage: str | None = None
    name: str | None = None
    tracking_uri: str | None = None


def choose(storage: str, name: str | None) -> list[str]:
    """Names of the sweeps to look at.

    Raises:
        UsageError: if there is no such sweep.
    """
    known = sweeps_in(storage)
    chosen = [sweep for sweep in known if name in (None, sweep)]
    if not chosen:
        raise UsageError(
            f"no sweep{f' {name!r}' if name else ''} under {storage}; there is {', '.join(known) or 'none'}"
        )
    return chosen


def send(storage: str, name: str, uri: str | None, again: bool) -> bool:
    """Send what MLflow does not have of one sweep, or everything; whether MLflow took it.

    Raises:
        UsageError: if the server does not answer, another process is sending, or there is no event log.
    """
    sweep = Sweep.load(name, storage)
    uri, local = uri or os.environ.get("MLFLOW_TRACKING_URI") or sweep.mlflow, sweep.local_folder
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


def main(argv: Sequence[str] | None = None) -> int:
    """Send what is missing; the exit status."""
    return run(lambda: send_all(argv))


def send_all(argv: Sequence[str] | None) -> int:
    """Send what is missing of all sweeps that are asked for."""
    asked = parse(Asked, argv, prog="python -m sweeps.tracking", description=(__doc__ or "").partition("\n\n")[0])
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    storage, again = absolute(asked.storage or usual_storage()), asked.command == "rebuild"
    names = choose(storage, asked.name)
    return 0 if all([send(storage, name, asked.tracking_uri, again) for name in names]) else 1


if __name__ == "__main__":
    sys.exit(main())
