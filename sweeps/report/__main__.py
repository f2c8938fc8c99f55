"""Write the report of a sweep: one HTML page with figures, tables and heatmaps, images and all.

    heatmap-sweeps report --name SWEEP    # or python -m sweeps.report

A sweep writes it when it ends; this writes it again, or elsewhere, and prints where it is. It needs the sweep's folder
and, for the heatmaps, its data; neither a server nor a cluster.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from sweeps.command_line import OfSweep
from trainer.command import command, parse
from trainer.locations import absolute


@dataclass(frozen=True, kw_only=True)
class Asked(OfSweep):
    """The report to write.

    Args:
        out: file to write; by default report.html in the sweep's folder.
    """

    out: str | None = None


@command()
def main(argv: Sequence[str] | None = None) -> int:
    """Write the report and print where it is; the exit status."""
    asked = parse(Asked, argv, prog="heatmap-sweeps report", description=__doc__ or "")
    from sweeps.results import SweepResult

    result = SweepResult.load(asked.name, asked.storage)
    from sweeps.report.page import PAGE, write_report  # with PyTorch, once there is something to report

    out = absolute(asked.out or f"{result.sweep.folder}/{PAGE}")
    write_report(result, out)
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
