"""How much the choice of the regularizer, and the weight of each, mattered in the search; as optuna-dashboard shows it.

References:
    Watanabe, Bansal, Hutter: PED-ANOVA: Efficiently Quantifying Hyperparameter Importance in Arbitrary Subspaces.
    IJCAI 2023. Its extension to parameters that some trials only have is Optuna's.
"""

import warnings
from collections import Counter

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import TrialState

FEWEST = 10  # complete trials with a parameter: PED-ANOVA compares the best tenth with all
OF_EACH = 5  # complete trials of a regularizer on average: of one each, the best tenth is the best, not where it lies


def importances(study: optuna.Study) -> dict[str, float]:
    """Importance of each parameter that enough trials have, as a fraction of their sum, largest first.

    Empty where there are fewer than two such: the fraction would be 1, whatever the trials say.

    A parameter is important if the best trials lie elsewhere in its range than the rest: `weight_ssim` among the trials
    of `ssim`, `regularizer` among all.
    """
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    counts = Counter(name for trial in trials for name in trial.params)
    needed = {"regularizer": OF_EACH * len({trial.params.get("regularizer") for trial in trials})}
    enough = {name for name, count in counts.items() if count >= max(needed.get(name, 0), FEWEST)}
    if len(enough) < 2:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of regularizers with one trial: their importance is 0
        found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    total = sum(found[name] for name in enough) or 1.0
    return {name: float(value / total) for name, value in found.items() if name in enough}
