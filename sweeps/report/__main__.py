"""Write the report of a sweep: one HTML page with figures, tables and heatmaps, images and all.

    python -m sweeps.report --name SWEEP

A sweep that ends writes it by itself; this does so again, or elsewhere. Prints where it is. Needs the sweep's folder
and, for the heatmaps, its data; neither a server nor a cluster.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.command import parse, run


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The report to write.

    Args:
        name: name of the sweep, which has ended.
        storage: folder or URL of the sweep; that of SWEEPS_STORAGE, else ./runs, if not given.
        out: file to write; report.html in the sweep's folder if not given.
    """

    name: str
    storage: str | None = None
    out: str | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report; the exit status."""
    return run(lambda: write(argv))


def write(argv: Sequence[str] | None) -> int:
    """Write the report, and print where it is."""
    asked = parse(Asked, argv, prog="heatmap-sweeps report", description=(__doc__ or "").partition("\n\n")[0])
    from sweeps.report.page import PAGE, write_report
    from sweeps.results import SweepResult
    from trainer.locations import absolute

    result = SweepResult.load(asked.name, asked.storage)
    out = absolute(asked.out or f"{result.sweep.folder}/{PAGE}")
    write_report(result, out)
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
