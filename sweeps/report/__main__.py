"""Write the report of a sweep: one HTML page with figures, tables and heatmaps, images and all.

    python -m sweeps.report --name SWEEP

A sweep that ends writes it by itself; this does so again, or elsewhere. Prints where it is. Needs the sweep's folder
and, for the heatmaps, its data; neither a server nor a cluster.
"""

import argparse
import sys

from sweeps.report import PAGE, write_report
from sweeps.results import SweepResult
from trainer.arguments import Parser
from trainer.config import UsageError
from trainer.locations import absolute


def parse() -> argparse.Namespace:
    """Command line."""
    parser = Parser(prog="python -m sweeps.report", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--name", required=True, metavar="SWEEP", help="of the sweep, which has ended")
    parser.add_argument("--storage", metavar="WHERE", default="runs", help="of the sweep (default ./runs)")
    parser.add_argument("--out", metavar="FILE", help="default: report.html in the sweep's folder")
    return parser.parse_args()


def main() -> int:
    """Write the report; the exit status."""
    given = parse()
    try:
        result = SweepResult.load(given.name, given.storage)
        out = absolute(given.out or f"{result.sweep.folder}/{PAGE}")
        write_report(result, out)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
