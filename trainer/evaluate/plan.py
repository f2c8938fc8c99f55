"""What an evaluation measures, and on how many examples."""

from dataclasses import dataclass

from trainer.config import Trial
from trainer.evaluate.robustness import Attack, Gradient, Square, fgsm

LIGHT_SHARE = 0.2  # of the passes of a plain training epoch, at most
FEWEST = 32  # examples to attack: fewer say nothing
HEATMAP_PASSES = 3  # the heatmap forward and backward, and a prediction


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one evaluation measures.

    Args:
        examples: number of examples for accuracy, loss and calibration; None takes the whole split.
        attacked: number of examples that are attacked and explained, spread over the split; None takes all.
        attacks: attacks in order; the first gives `robust_accuracy`.
        full: whether noise, corruptions and faithfulness of the heatmap are measured too.
        majority: whether the share of the most frequent class is, the accuracy of always answering that one.
    """

    examples: int | None = None
    attacked: int | None = None
    attacks: tuple[Attack, ...]
    full: bool = False
    majority: bool = False


def own_attack(trial: Trial) -> Gradient:
    """The attack whose success the sweep minimizes."""
    return Gradient(eps=trial.pgd_eps * 255, steps=trial.pgd_steps)


def light(trial: Trial, total: int) -> Plan:
    """For after an epoch: at most a fifth of the epoch's cost, and less than the whole split where it must be.

    Counted in passes over an image: three for a plain step (forward, and backward for input and weights), so that all
    trials of a sweep, with regularizer or without, are measured on the same examples. In an epoch too short for that,
    `FEWEST` examples are attacked all the same.
    """
    budget = LIGHT_SHARE * 3 * trial.epoch_images
    attack = own_attack(trial)
    each = attack.passes + HEATMAP_PASSES
    examples = min(total, max(int(budget / 2), FEWEST))
    attacked = max(int((budget - examples) / each), FEWEST)
    return Plan(examples=examples, attacked=min(attacked, trial.robust_images), attacks=(attack,))


def closing(trial: Trial) -> Plan:
    """For the end of training: the whole split, `robust_images` of it attacked and explained."""
    return Plan(attacked=trial.robust_images, attacks=(own_attack(trial),))


def full(
    trial: Trial,
    *,
    attacked: int | None,
    eps: tuple[float, ...] = (1.0, 2.0, 4.0),
    l2_eps: tuple[float, ...] = (64.0, 128.0),
    steps: int = 20,
    restarts: int = 1,
    queries: int = 100,
) -> Plan:
    """Everything.

    Args:
        trial: configuration; it gives the attack of `robust_accuracy`.
        attacked: number of examples to attack and explain; None takes all.
        eps: ℓ∞ radii of FGSM, PGD and Square, in gray levels.
        l2_eps: ℓ2 radii of PGD, in gray levels.
        queries: number of squares that Square tries; 0 leaves it out.
    """
    attacks: list[Attack] = [own_attack(trial)]
    attacks += [fgsm(radius) for radius in eps]
    attacks += [Gradient(eps=radius, steps=steps, restarts=restarts) for radius in eps]
    attacks += [Gradient(norm="l2", eps=radius, steps=steps, restarts=restarts) for radius in l2_eps]
    attacks += [Square(eps=radius, queries=queries) for radius in eps] if queries else []
    return Plan(attacked=attacked, attacks=tuple(dict.fromkeys(attacks)), full=True)
