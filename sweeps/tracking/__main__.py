"""Send MLflow what it could not hear while it was away.

    python -m sweeps.tracking flush                    # of all sweeps under ./runs
    python -m sweeps.tracking flush --name SWEEP       # of one

Prints what was sent of each run. May be run again, and while the sweep runs. Exit status 2 if the server is still away.
"""

import argparse
import logging
import sys
from collections import Counter
from pathlib import Path

from sweeps.settings import sweeps_in
from sweeps.tracking import Delivery, reason
from trainer.arguments import Parser
from trainer.config import UsageError
from trainer.locations import absolute, read_json


def parse() -> argparse.Namespace:
    """Command line."""
    parser = Parser(prog="python -m sweeps.tracking", description=(__doc__ or "").partition("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    flush = commands.add_parser("flush", help="send what still waits", description=parser.description)
    flush.add_argument("--storage", metavar="WHERE", default="runs", help="of the sweeps (default ./runs)")
    flush.add_argument("--name", metavar="SWEEP", help="of one sweep (default: all of them)")
    flush.add_argument("--tracking-uri", metavar="URI", help="of MLflow (default: the sweep's own)")
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


def flush(storage: str, name: str, uri: str | None) -> bool:
    """Send what waits of one sweep; whether MLflow took everything.

    Raises:
        UsageError: if the server is away, another process is sending, or the sweep was driven from another machine.
    """
    settings = read_json(f"{storage}/{name}/settings.json")
    uri = uri or settings["tracking_uri"]
    folder = Path(settings.get("local_dir") or storage, name, "spool")
    if not folder.exists():
        raise UsageError(f"{name}: what it has to say lies in {folder} of the machine that drove it; run this there")
    sent: Counter[str] = Counter()
    delivery = Delivery(folder, uri, lambda run, points: sent.update({run: points}))
    try:
        if not delivery.send(patience=120):
            raise UsageError(f"{name}: another process is still sending; run this again to see that nothing waits")
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"{name}: MLflow at {uri} is away, all that it did not take waits on ({reason(error)})"
        ) from None
    finally:
        for run, points in sent.items():
            print(f"{name}: sent {points} points of {run}")
    for key, why in delivery.refused.items():
        print(f"{name}: MLflow refuses {key}: {why}", file=sys.stderr)
    if not sent and not delivery.refused:
        print(f"{name}: nothing waits")
    return not delivery.refused


def main() -> int:
    """Send what waits; the exit status."""
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    given = parse()
    try:
        storage = absolute(given.storage)
        return 0 if all([flush(storage, name, given.tracking_uri) for name in choose(storage, given.name)]) else 1
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
