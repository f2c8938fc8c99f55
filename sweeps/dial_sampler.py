"""Optuna's view of `sweeps.dial`: a sampler that proposes strengths by what the study has measured."""

from collections.abc import Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from sweeps.dial import Baseline, Dial, Measured, allocate
from trainer.metrics import VAL_ACCURACY, VAL_ATTACKED_EXAMPLES, VAL_EXAMPLES, VAL_ROBUST_ACCURACY

MEASURED = "measured"  # user attribute of a trial that ended: what it measured
MAX_DROP = "max_accuracy_drop"  # of the study: how far below the baselines' mean accuracy the pick may lie


def numbers(result: Mapping[str, Any], epochs: int) -> dict[str, float]:
    """What a trial measured, for the study.

    Args:
        result: the last that Tune has of it.
        epochs: number of epochs of a whole trial.
    """
    return {
        "accuracy": result[VAL_ACCURACY],
        "robust_accuracy": result[VAL_ROBUST_ACCURACY],
        "images": int(result.get(VAL_EXAMPLES, 1)),
        "attacked": int(result.get(VAL_ATTACKED_EXAMPLES, 1)),
        "progress": min(result.get("epoch", epochs) / epochs, 1.0),
    }


def measured(trial: FrozenTrial | optuna.Trial, strength: float = 0.0) -> Measured | None:
    """The same, as the study has it; None of a trial that measured nothing."""
    found = trial.user_attrs.get(MEASURED)
    return Measured(strength=strength, **found) if found else None


class DialSampler(optuna.samplers.TPESampler):
    """Proposes the weight of a regularizer by `sweeps.dial`, and all other parameters by TPE.

    The weights that it proposes gather around the limit, and TPE has the limit as a constraint: of the other parameters
    it so prefers values that make the most of those strengths. All that the dial needs is in the study.

    Args:
        ranges: strengths to search, lowest and highest, of each regularizer that has a penalty.
        units: calibrated unit of its weight.
        seed: seed of TPE.
    """

    def __init__(self, ranges: Mapping[str, tuple[float, float]], units: Mapping[str, float], seed: int) -> None:
        super().__init__(constant_liar=True, seed=seed)
        self.ranges, self.units = ranges, units
        self._dials: dict[str, Dial] = {}

    def __getstate__(self) -> dict[str, Any]:
        """What the dials have at hand can be computed again."""
        return self.__dict__ | {"_dials": {}}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The proposal for one parameter."""
        names = [name for name in self.ranges if param_name in ("regularizer", f"weight_{name}")]
        if not names:
            return super().sample_independent(study, trial, param_name, param_distribution)
        dials = self.dials(study)
        if param_name == "regularizer":
            return allocate({name: dials[name] for name in names})
        return dials[names[0]].propose() * self.units[names[0]]

    def dials(self, study: optuna.Study) -> dict[str, Dial]:
        """What the study knows of each regularizer; of trials without a weight yet it knows nothing."""
        ended: dict[str, list[Measured]] = {name: [] for name in ("none", *self.ranges)}
        pending: dict[str, list[float]] = {name: [] for name in ended}
        states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
        for trial in study.get_trials(deepcopy=False, states=states):
            name = trial.params.get("regularizer")
            if name not in ended or (name != "none" and f"weight_{name}" not in trial.params):
                continue
            strength = trial.params[f"weight_{name}"] / self.units[name] if name != "none" else 0.0
            if trial.state == TrialState.RUNNING:
                pending[name].append(strength)
            elif found := measured(trial, strength):
                ended[name].append(found)
        baseline = Baseline.of(ended["none"], study.user_attrs[MAX_DROP])
        images = max((trial.images for trials in ended.values() for trial in trials if trial.progress == 1), default=0)
        for name, (low, high) in self.ranges.items():
            dial = Dial(baseline, low, high, tuple(ended[name]), tuple(pending[name]), images or 1000)
            if self._dials.get(name) != dial:  # an old one has its probabilities at hand
                self._dials[name] = dial
        return self._dials
