"""What a sweep that has ended left in its folder, read back for reports; needs neither Ray nor MLflow to run."""

from dataclasses import dataclass, field
from typing import Any

from sweeps.finalists import choose
from sweeps.ranking import Row, baseline, pick
from sweeps.settings import Sweep
from sweeps.start_check import StartCheck, kept
from trainer.config import UsageError
from trainer.locations import read_json


@dataclass(frozen=True, kw_only=True)
class Result:
    """A sweep and how its trials ended.

    Args:
        sweep: its settings.
        rows: the trials of the search, best first.
        finalists: the best weights trained again, as `sweeps.finalists.as_dicts` has them; empty without --seeds.
        units: calibrated unit of each regularizer's weight.
        importances: of the parameters of the search, as `sweeps.importance` has them.
        start: what the sweep started from; None of one that did not measure it.
    """

    sweep: Sweep
    rows: list[Row]
    finalists: list[dict[str, Any]]
    units: dict[str, float]
    importances: dict[str, float] = field(default_factory=dict)
    start: StartCheck | None = None

    @property
    def baseline(self) -> Row | None:
        """The trial the selection rule compares with."""
        return baseline(self.rows)

    @property
    def picked(self) -> Row | None:
        """The trial the selection rule names."""
        return pick(self.rows, self.sweep.max_accuracy_drop)

    @property
    def least_accuracy(self) -> float:
        """What the rule asks of a pick, as a fraction of 1; 0 without a baseline."""
        return self.baseline.accuracy - self.sweep.max_accuracy_drop if self.baseline else 0.0

    @property
    def champions(self) -> list[Row]:
        """The best finished trial of each regularizer, best first."""
        return choose(self.rows, self.sweep.max_accuracy_drop)


def load_result(storage: str, name: str) -> Result:
    """Read the result of a sweep.

    Args:
        storage: of the sweep, a folder or URL.
        name: of the sweep.

    Raises:
        UsageError: if there is no such sweep, or it has not ended.
    """
    sweep = Sweep.load(storage, name)
    result = read_json(f"{sweep.folder}/result.json")
    if result is None:
        raise UsageError(
            f"sweep {name} has no result yet; `python -m sweeps.status --name {name}` shows how far it is, "
            "sweeps/all_regularizers.py --resume continues one that was interrupted"
        )
    return Result(
        sweep=sweep,
        rows=[Row(**row) for row in result["trials"]],
        finalists=result["finalists"],
        units=read_json(f"{sweep.folder}/calibration.json"),
        importances=result.get("importances", {}),
        start=kept(sweep.folder),
    )
