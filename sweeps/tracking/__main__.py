"""Send MLflow what it does not have of a sweep.

    python -m sweeps.tracking flush                      # of all sweeps under ./runs, what is still missing
    python -m sweeps.tracking flush --name SWEEP         # of one
    python -m sweeps.tracking rebuild --name SWEEP       # everything again, from the sweep's storage alone

Prints what was sent of each run. May be run again, and while the sweep runs. Exit status 2 if no server answers.
"""

import argparse
import logging
import sys
from collections import Counter
from pathlib import Path

from sweeps.events import log_in
from sweeps.settings import sweeps_in
from sweeps.tracking.server import reason
from sweeps.tracking.upload import Uploader
from trainer.arguments import Parser
from trainer.config import UsageError
from trainer.locations import absolute, is_url, read_json


def parse() -> argparse.Namespace:
    """Command line."""
    parser = Parser(prog="python -m sweeps.tracking", description=(__doc__ or "").partition("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, help_ in (
        ("flush", "send what MLflow does not have yet"),
        ("rebuild", "send everything again, to a new or an emptied MLflow"),
    ):
        command = commands.add_parser(name, help=help_, description=help_)
        command.add_argument("--storage", metavar="WHERE", default="runs", help="of the sweeps (default ./runs)")
        command.add_argument("--name", metavar="SWEEP", help="of one sweep (default: all of them)")
        command.add_argument("--tracking-uri", metavar="URI", help="of MLflow (default: the sweep's own)")
    return parser.parse_args()


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
    settings = read_json(f"{storage}/{name}/settings.json")
    uri = uri or settings["tracking_uri"]
    local = Path(settings.get("local_dir") or ("runs" if is_url(storage) else storage), name)
    log = log_in(f"{storage}/{name}", local)
    if not log.size():
        raise UsageError(f"{name}: there is no event log in {local}; run this on the machine that drove the sweep")
    sent: Counter[str] = Counter()
    uploader = Uploader(f"{storage}/{name}", local, log, uri, lambda run, points: sent.update({run: points}))
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
        for run, points in sent.items():
            print(f"{name}: sent {points} values of {run}")
    for run, why in uploader.refused.items():
        print(f"{name}: MLflow refuses something of {run}: {why}", file=sys.stderr)
    if not sent and not uploader.refused:
        print(f"{name}: MLflow has everything")
    return not uploader.refused


def main() -> int:
    """Send what is missing; the exit status."""
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    given = parse()
    try:
        storage, again = absolute(given.storage), given.command == "rebuild"
        return 0 if all([send(storage, name, given.tracking_uri, again) for name in choose(storage, given.name)]) else 1
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
