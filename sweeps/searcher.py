"""Ray Tune's searcher over one Optuna study: the study keeps what was proposed and how it ended."""

import contextlib
import math
import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import JournalStorage
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher

from sweeps.dial import Baseline
from sweeps.dial_sampler import MAX_DROP, MEASURED, measured, numbers
from trainer.locations import is_url, whole_file
from trainer.metrics import VAL_ACCURACY

TUNE_ID = "tune_id"  # user attribute of a trial: its id in Tune
REPEATS = "repeats"  # user attribute of a trial: number of the one that Tune forgot and that it takes the place of


@dataclass
class Running:
    """A trial that Tune and the study know of.

    Args:
        trial: trial of the study.
        reported: newest epoch whose value the study has.
    """

    trial: optuna.Trial
    reported: int = 0


class StudySearcher(Searcher):
    """Searcher whose state is the study, so that it goes on where a killed process left off.

    A snapshot holds what the study cannot know: the random numbers of the sampler, and which trials Tune knew of.
    The study may know more than the snapshot, and more than this searcher.

    Args:
        study: Optuna study of proposals and results; none of its trials is running.
        storage: storage of the study.
        space: proposes a regularizer and its weight for a trial.
        seed: seed of the sweep, that of every trial with a penalty: all see the same images in the same order, and are
            attacked on the same ones. The n-th baseline gets seed + n, for what chance does to the accuracy that the
            rule compares with (trials that failed, or that Tune forgot, do not count).
        epochs: number of epochs of a whole trial.
        metrics: names of the metrics to maximize, one or several.
        journal: path of the study, and where a copy is kept with each snapshot.
    """

    def __init__(
        self,
        study: optuna.Study,
        storage: JournalStorage,
        *,
        space: Callable[[optuna.Trial], dict[str, Any]],
        seed: int,
        epochs: int,
        metrics: list[str],
        journal: tuple[Path, str],
    ) -> None:
        single = len(metrics) == 1
        names: Any = metrics[0] if single else metrics  # Tune's annotation knows of one only
        modes: Any = "max" if single else ["max"] * len(metrics)
        super().__init__(names, modes)
        self.study, self.storage, self.space, self.seed = study, storage, space, seed
        self.epochs, self.metrics, self.journal = epochs, metrics, journal
        self._take_up()

    def _take_up(self) -> None:
        """Read from the study what is kept at hand: a suggestion that counted all trials would slow down with them."""
        trials = self.study.get_trials(deepcopy=False)
        repeated = _repeated(trials)
        asked = [trial for trial in trials if trial.state != TrialState.WAITING]
        baselines = [trial for trial in asked if trial.params.get("regularizer") == "none"]
        self.baselines = sum(trial.state != TrialState.FAIL and trial.number not in repeated for trial in baselines)
        self.references = [found for found in map(measured, baselines) if found and found.usable]
        # The queue is served in order, so the trials asked from here on have higher numbers.
        self.last = max((trial.number for trial in asked), default=-1)
        self.running = {
            str(trial.user_attrs[TUNE_ID]): Running(self._trial(trial.number), trial.last_step or 0)
            for trial in asked
            if trial.state == TrialState.RUNNING and TUNE_ID in trial.user_attrs
        }

    def _trial(self, number: int) -> optuna.Trial:
        """The trial as `study.ask` returned it, in whichever process: only to that can values be reported."""
        study_id = self.storage.get_study_id_from_name(self.study.study_name)
        return optuna.Trial(self.study, self.storage.get_trial_id_from_study_id_trial_number(study_id, number))

    def suggest(self, trial_id: str) -> dict[str, Any]:
        trial = self.study.ask()
        params = self.space(trial)  # at once: killed before it, a process leaves a trial without its regularizer
        trial.set_user_attr(TUNE_ID, trial_id)
        self.running[trial_id], self.last = Running(trial), trial.number
        seed = self.seed
        if params["regularizer"] == "none":
            seed += self.baselines
            self.baselines += 1
        return params | {"seed": seed, "number": trial.number}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if trial_id in self.running and self._measured(result):
            self._report(self.running[trial_id], result)

    def _report(self, running: Running, result: dict[str, Any]) -> None:
        # Tune's own count of results starts again when a trial goes on in another process.
        epoch = int(result.get("epoch", 0))
        if len(self.metrics) > 1 or epoch <= running.reported:  # Optuna has no intermediate values for several
            return
        running.reported = epoch
        with contextlib.suppress(UpdateFinishedTrialError):
            running.trial.report(result[self.metrics[0]], epoch)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        running = self.running.pop(trial_id, None)
        if running is None:  # the study knew of it before Tune's snapshot did
            return
        state, values = TrialState.COMPLETE, None
        if error or (result and not self._measured(result)):
            state = TrialState.FAIL
            self.baselines -= running.trial.params["regularizer"] == "none"
        elif not result:
            state = TrialState.PRUNED
        elif result.get("epoch", self.epochs) < self.epochs and not result.get("diverged"):
            state = TrialState.PRUNED  # for Optuna worse than every whole trial
            self._report(running, result)  # where it stood
        else:
            values = [result[metric] for metric in self.metrics]
        if result and state != TrialState.FAIL and math.isfinite(result.get(VAL_ACCURACY, math.nan)):
            self._keep(running.trial, result)
        self.study.tell(running.trial, values, state, skip_if_finished=True)

    def _keep(self, trial: optuna.Trial, result: dict[str, Any]) -> None:
        """Keep in the study what a trial measured, and how far it lies beyond the limit."""
        with contextlib.suppress(UpdateFinishedTrialError):
            trial.set_user_attr(MEASURED, numbers(result, self.epochs))
            found = measured(trial)
            if trial.params["regularizer"] == "none" and found and found.usable:
                self.references.append(found)
            if self.references and len(self.metrics) == 1:  # several are for more than the pick
                limit = Baseline.of(self.references, self.study.user_attrs[MAX_DROP]).limit
                trial.set_constraint("accuracy", limit - result[VAL_ACCURACY])

    def _measured(self, result: dict[str, Any]) -> bool:
        values = [result.get(metric) for metric in self.metrics]
        return not result.get("failed") and all(isinstance(v, int | float) and math.isfinite(v) for v in values)

    def save(self, checkpoint_path: str) -> None:
        path, copy = self.journal
        if is_url(copy):  # first: the study may know more than the snapshot, not less
            with whole_file(copy) as stream:
                stream.write(path.read_bytes())
        with open(checkpoint_path, "wb") as file:
            pickle.dump({"last": self.last, "sampler": self.study.sampler}, file)

    def restore(self, checkpoint_path: str) -> None:
        with open(checkpoint_path, "rb") as file:
            kept = pickle.load(file)
        self.study.sampler = kept["sampler"]
        trials = self.study.get_trials(deepcopy=False)
        repeated = _repeated(trials)
        for trial in trials:
            if trial.number <= kept["last"] or trial.state == TrialState.WAITING:
                continue
            if trial.number not in repeated:  # Tune will ask for one more; its regularizer is not to be one short
                self.study.enqueue_trial(trial.params, user_attrs={REPEATS: trial.number})
            if trial.state == TrialState.RUNNING:
                self.study.tell(trial.number, state=TrialState.FAIL)
        self._take_up()


def _repeated(trials: Iterable[FrozenTrial]) -> set[int | None]:
    return {trial.user_attrs.get(REPEATS) for trial in trials}
