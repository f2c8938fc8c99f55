"""Send MLflow what it could not hear while it was away.

    python -m sweeps.tracking flush                    # of all sweeps under ./runs
    python -m sweeps.tracking flush --name SWEEP       # of one

Prints what was sent of each run. May be run again, and while the sweep runs. Exit status 2 if the server is still away.
"""

import argparse
import json
import logging
import sys
from collections import Counter
from pathlib import Path

from sweeps.tracking import Delivery, reason
from trainer.config import UsageError


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m sweeps.tracking", description=(__doc__ or "").partition("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    flush = commands.add_parser("flush", help="send what still waits", description=parser.description)
    flush.add_argument("--storage", metavar="FOLDER", default="runs", help="of the sweeps (default ./runs)")
    flush.add_argument("--name", metavar="SWEEP", help="of one sweep (default: all of them)")
    flush.add_argument("--tracking-uri", metavar="URI", help="of MLflow (default: the sweep's own)")
    return parser.parse_args()


def choose(storage: Path, name: str | None) -> list[Path]:
    """Folders of the sweeps to look at.

    Raises:
        UsageError: if there is no such sweep.
    """
    known = sorted(path.parent for path in storage.glob("*/settings.json"))
    chosen = [folder for folder in known if name in (None, folder.name)]
    if not chosen:
        names = ", ".join(folder.name for folder in known) or "none"
        raise UsageError(f"no sweep{f' {name!r}' if name else ''} under {storage}; there is {names}")
    return chosen


def flush(sweep: Path, uri: str | None) -> bool:
    """Send what waits of one sweep; whether MLflow took everything.

    Raises:
        UsageError: if the server is away or another process is sending.
    """
    uri = uri or json.loads((sweep / "settings.json").read_text())["tracking_uri"]
    sent: Counter[str] = Counter()
    delivery = Delivery(sweep / "spool", uri, lambda name, points: sent.update({name: points}))
    try:
        if not delivery.send(patience=120):
            raise UsageError(
                f"{sweep.name}: another process is still sending; run this again to see that nothing waits"
            )
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"{sweep.name}: MLflow at {uri} is away, all that it did not take waits on ({reason(error)})"
        ) from None
    finally:
        for name, points in sent.items():
            print(f"{sweep.name}: sent {points} points of {name}")
    for key, why in delivery.refused.items():
        print(f"{sweep.name}: MLflow refuses {key}: {why}", file=sys.stderr)
    if not sent and not delivery.refused:
        print(f"{sweep.name}: nothing waits")
    return not delivery.refused


def main() -> int:
    """Send what waits; the exit status."""
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    given = parse()
    try:
        storage = Path(given.storage).expanduser().resolve()
        return 0 if all([flush(sweep, given.tracking_uri) for sweep in choose(storage, given.name)]) else 1
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
