"""What a sweep that has ended left in its folder, for Python and for reports; needs neither Ray nor MLflow."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from json import JSONDecodeError
from os import PathLike
from typing import TYPE_CHECKING, Any

from sweeps.ranking import Baseline, Row, baseline, least_accuracy, pareto, pick, rank
from sweeps.settings import Sweep
from trainer.errors import FieldError, UsageError
from trainer.locations import read_json

if TYPE_CHECKING:
    from pandas import DataFrame
    from torch import nn

    from sweeps.comparison import Comparison
    from sweeps.messages import Progress
    from sweeps.start_check import StartCheck


@dataclass(frozen=True, kw_only=True)
class TrialResult(Row):
    """One trial of a sweep: its figures, its model, and more epochs of it."""

    sweep: Sweep = field(repr=False)

    def load_model(self) -> nn.Module:
        """The model as the trial's last epoch left it, on the CPU and in evaluation mode.

        It takes images normalized by the mean and deviation of `sweep.trial` (`sweep.trial.normalization`).

        Raises:
            UsageError: if the trial left no checkpoint, or it cannot be read.
        """
        from trainer.evaluate.subject import load_subject

        if not self.checkpoint:
            raise FieldError("trial", self.tag, f"it {self.status} and left no checkpoint")
        return load_subject(self.checkpoint, self.sweep.trial.data, {}).model.eval()

    def train_on(self, epochs: int = 2, progress: Progress | None = None, verbose: bool = False) -> TrialResult:
        """Train further from the last checkpoint, with the optimizer's state and the data order of a longer trial.

        Called again with the same number of epochs, it continues where it was interrupted.

        Args:
            epochs: number of further epochs.
            progress: callback for the messages of `sweeps.messages`; None only logs.
            verbose: whether what Ray and the workers say reaches the terminal.

        Raises:
            UsageError: if the trial left no checkpoint to train on.
        """
        from sweeps.environment import set_environment

        set_environment()  # before Ray is imported
        from sweeps.train_on import train_on

        return train_on(self, epochs, progress, verbose)


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """A sweep and how its trials ended.

    Args:
        trials: those of the search, best first.
        finalists: the best weights trained again, as `sweeps.finalists.as_dicts` has them; empty without seeds.
        units: calibrated unit of each regularizer's weight.
        importances: importance of each parameter of the search, as `sweeps.importance` has them.
        start: what the sweep started from; None of one that did not measure it.
        comparisons: the pick against each rival, the runner-up first, as `sweeps.comparison` has them.
    """

    sweep: Sweep
    trials: list[TrialResult]
    finalists: list[dict[str, Any]] = field(repr=False)
    units: dict[str, float] = field(repr=False)
    importances: dict[str, float] = field(default_factory=dict, repr=False)
    start: StartCheck | None = field(default=None, repr=False)
    comparisons: list[Comparison] = field(default_factory=list, repr=False)

    @classmethod
    def load(cls, name: str, storage: str | PathLike[str] | None = None) -> SweepResult:
        """Read the result of a sweep.

        Args:
            name: name of the sweep.
            storage: folder or URL with the sweep; None is that of SWEEPS_STORAGE, else ./runs.

        Raises:
            UsageError: if there is no such sweep, or it has not ended.
        """
        sweep = Sweep.load(name, storage)
        try:
            result = read_json(f"{sweep.folder}/result.json")
        except JSONDecodeError as error:
            again = f"`{sweep.command('sweep', '--resume')}` writes it again"
            raise UsageError(f"{sweep.folder}/result.json: is not valid JSON ({error}); {again}") from None
        if result is None:
            raise UsageError(
                f"sweep {name} has no result yet; `{sweep.command('status')}` shows how far it is, and "
                f"`{sweep.command('sweep', '--resume')}` continues one that was interrupted"
            )
        from sweeps.comparison import Comparison  # with scipy
        from sweeps.start_check import kept  # with PyTorch

        return cls(
            sweep=sweep,
            trials=[TrialResult(**row, sweep=sweep) for row in result["trials"]],
            finalists=result["finalists"],
            units=read_json(f"{sweep.folder}/calibration.json"),
            importances=result.get("importances", {}),
            start=kept(sweep.folder),
            comparisons=[
                Comparison(**one | {"interval": tuple(one["interval"])}) for one in result.get("comparisons", ())
            ],
        )

    @property
    def pick(self) -> TrialResult | None:
        """The trial that the selection rule names; None where no baseline finished."""
        return pick(self.trials, self.sweep.max_accuracy_drop, self.finalists)

    @property
    def front(self) -> list[TrialResult]:
        """The Pareto front: finished trials that no other beats in both accuracies, the most accurate first."""
        ids = pareto(self.trials)
        return sorted((one for one in self.trials if one.trial_id in ids), key=lambda one: -one.accuracy)

    def best(self) -> TrialResult:
        """The pick.

        Raises:
            UsageError: if there is none.
        """
        if self.pick is None:
            raise FieldError("trial", None, f"sweep {self.sweep.name} has no pick; name a trial")
        return self.pick

    def trial(self, which: int | str) -> TrialResult:
        """One trial.

        Args:
            which: number of the trial (7, "7" or "#07"), its id or the beginning of that.

        Raises:
            UsageError: if there is none, or several ids begin so.
        """
        text = str(which).removeprefix("#")
        numbered = [one for one in self.trials if text.isdecimal() and one.number == int(text)]
        named = [one for one in self.trials if one.trial_id == text]
        begun = [one for one in self.trials if text and one.trial_id.startswith(text)]
        found = numbered or named or begun
        if len(found) != 1:
            known = ", ".join(one.tag for one in sorted(self.trials, key=lambda one: (one.number or 0, one.trial_id)))
            raise FieldError("trial", which, f"sweep {self.sweep.name} has {known}")
        return found[0]

    def table(self) -> DataFrame:
        """Every trial with all that was measured, best first, by its number; fractions of 1."""
        from pandas import DataFrame

        picked, front = self.pick, pareto(self.trials)
        plain = [one.name for one in fields(Row) if one.name != "metrics"]
        rows = [
            {name: getattr(one, name) for name in plain}
            | {"pick": one is picked, "front": one.trial_id in front}
            | one.metrics
            for one in self.trials
        ]
        columns = [*plain, "pick", "front", *sorted({name for one in self.trials for name in one.metrics})]
        return DataFrame(rows, columns=columns).set_index("number")

    @property
    def complete(self) -> bool:
        """Whether there is a pick, no trial failed, and every repetition of the best weights finished."""
        all_there = len(self.trials) == self.sweep.total_trials and all(one.status != "failed" for one in self.trials)
        return self.pick is not None and all_there and not self.short

    @property
    def short(self) -> list[str]:
        """Finalists that were not trained again as often as asked."""
        return [one["regularizer"] for one in self.finalists if len(one["trials"]) < self.sweep.seeds]

    @property
    def verdict(self) -> str:
        """What the sweep found and how sure that is, in a sentence or two."""
        from sweeps.comparison import verdict

        return verdict(self)

    @property
    def baseline(self) -> Baseline | None:
        """What the selection rule compares with: means over the trials without a penalty."""
        return baseline(self.trials, self.finalists)

    @property
    def least_accuracy(self) -> float:
        """What the rule asks of a pick, as a fraction of 1; 0 without a baseline."""
        return least_accuracy(self.trials, self.sweep.max_accuracy_drop, self.finalists) or 0.0

    @property
    def champions(self) -> list[TrialResult]:
        """The best finished trial of each regularizer, best first."""
        from sweeps.finalists import choose

        return choose(self.trials, self.sweep.max_accuracy_drop)

    def _repr_html_(self) -> str:
        """For a notebook."""
        return self.table()._repr_html_()


def ranked(sweep: Sweep, rows: list[Row]) -> list[TrialResult]:
    """The rows of a sweep as its results, best first."""
    return [TrialResult(**vars(row), sweep=sweep) for row in rank(rows)]
