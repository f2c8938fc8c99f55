"""How much the choice of the regularizer, and the weight of each, mattered in the search; as optuna-dashboard shows it.

References:
    Watanabe, Bansal, Hutter: PED-ANOVA: Efficiently Quantifying Hyperparameter Importance in Arbitrary Subspaces.
    IJCAI 2023. Its extension to parameters that some trials only have is Optuna's.
"""

import warnings

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import TrialState

FEWEST = 10  # complete trials: PED-ANOVA compares the best tenth with all


def importances(study: optuna.Study) -> dict[str, float]:
    """Importance of every parameter as a fraction of their sum, largest first; empty where there are too few trials.

    A parameter is important if the best trials lie elsewhere in its range than the rest: `weight_ssim` among the trials
    of `ssim`, `regularizer` among all.
    """
    if len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))) < FEWEST:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of regularizers with one trial: their importance is 0
        found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    return {name: float(value) for name, value in found.items()}
