"""Which strength of a regularizer to try next, so that few trials find the one that the selection rule would pick.

Along the strength of one penalty accuracy falls from the baseline's, and of the images still classified correctly the
share that withstands the attack rises; robust accuracy is the product and may fall again. Both curves are logistic in
the logarithm of the strength, and a grid over their parameters holds all that the trials so far leave possible. Where
they leave everything possible a proposal lies near the middle, then it bisects what remains around the accuracy limit,
and at last it keeps a distance from the limit that depends on how exactly accuracy is measured.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from statistics import fmean

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, ndtr

Array = NDArray[np.float64]

FAIR = 2  # trials that each regularizer has before trials are moved
POINTS = 81  # strengths that are considered
APART = 0.02  # of the range (in logarithms) between two proposals
SLOPES = np.geomspace(1, 12, 7)  # of an accuracy's logit, per factor of ten in strength
SHARE_SLOPES = np.geomspace(1, 8, 3)
FADES = np.array([0.7, 1.5, np.inf])  # factors of ten behind the midpoint at which robustness is lost again
FADE_PRIOR = np.array([0.1, 0.1, 0.8])
LOWEST_ACCURACY = np.array([0, 0.3, 0.6, 0.8, 0.9, 0.95, 0.98])  # at infinite strength, relative to the baseline's
HIGHEST_SHARE = np.array([0, 0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1])  # of the way from the baseline's share to 1
NOISE = 0.01  # of both measurements beside that of the images: seeds, and curves that are not quite logistic
MARGIN = 0.5  # standard deviations of a measured accuracy, against those that are admitted by luck
TAIL = 4  # degrees of freedom of that noise: one trial that went wrong is not believed over all others
ACCIDENT = 0.1  # probability that a training without a result would have been admissible


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a trial measured when it ended; accuracies are fractions of 1.

    Args:
        strength: of its penalty, in calibrated units.
        accuracy: NaN where the training diverged.
        robust_accuracy: of the attacked images.
        images: behind the accuracy.
        attacked: images behind the robust accuracy.
        progress: share of the training it was measured after, below 1 where the trial was stopped.
    """

    strength: float
    accuracy: float
    robust_accuracy: float
    images: int
    attacked: int
    progress: float = 1.0

    @property
    def usable(self) -> bool:
        """Whether it says anything about the curves; a diverged training says that it was too strong."""
        return math.isfinite(self.accuracy) and math.isfinite(self.robust_accuracy) and self.accuracy > 0


@dataclass(frozen=True)
class Baseline:
    """What the rule compares with.

    Args:
        accuracy: mean of the trials without a penalty.
        robust_accuracy: likewise.
        images: behind the accuracy, all those trials together.
        max_accuracy_drop: how far below that accuracy the pick may lie.
    """

    accuracy: float
    robust_accuracy: float
    images: int
    max_accuracy_drop: float

    @classmethod
    def of(cls, trials: Sequence[Measured], max_accuracy_drop: float) -> "Baseline":
        """From trials without a penalty; what would be usual, known badly, before one of them has finished."""
        usable = [trial for trial in trials if trial.usable and trial.progress == 1]
        if not usable:
            return cls(0.9, 0.05, 100, max_accuracy_drop)
        accuracy, robust = fmean(trial.accuracy for trial in usable), fmean(trial.robust_accuracy for trial in usable)
        return cls(accuracy, robust, sum(trial.images for trial in usable), max_accuracy_drop)

    @property
    def limit(self) -> float:
        """Least accuracy that the rule admits."""
        return max(self.accuracy - self.max_accuracy_drop, 0.0)


@dataclass(frozen=True)
class Dial:
    """What is known of one regularizer.

    Args:
        baseline: of the sweep.
        low: weakest strength of the search.
        high: strongest.
        trials: that ended; failures of the machine, which say nothing, are left out.
        pending: strengths of those that run.
        images: behind the accuracy of a whole trial.
    """

    baseline: Baseline
    low: float
    high: float
    trials: tuple[Measured, ...] = ()
    pending: tuple[float, ...] = ()
    images: int = 1000

    def propose(self) -> float:
        """The strength of the next trial."""
        gain = self.improvement(self.best)
        taken = np.log10([*(trial.strength for trial in self.trials), *self.pending])
        span = self.grid[-1] - self.grid[0]
        free = (abs(self.grid[:, None] - taken) > APART * span).all(axis=1)
        chosen = np.argmax(np.where(free, gain, -1)) if free.any() else np.argmax(gain)
        return float(np.clip(10 ** self.grid[chosen], self.low, self.high))

    def improvement(self, best: float) -> Array:
        """By how much a trial at each strength of the grid is expected to raise the best admissible robust accuracy.

        Trials that run are expected to be as robust as the others let expect; whether they will be admitted depends on
        the accuracy curve, and beside each curve a further trial has to be better than those that are.
        """
        if self.pending:
            at = [int(abs(self.grid - math.log10(strength)).argmin()) for strength in self.pending]
            reached = np.maximum(best, (self._admitted[:, at] * self.robust[at]).max(axis=1))
            gain = self._admitted * np.maximum(self.robust - reached[:, None], 0)
            return np.asarray(self.accuracy_weights @ gain)
        likely = self.share_weights > 1e-4 * self.share_weights.max()  # the others cost time only
        gain = self.accuracy_if_admitted * self._share(self._gained[likely]) - best
        return self.admitted * (self.share_weights[likely] @ np.maximum(gain, 0))

    @cached_property
    def best(self) -> float:
        """Robust accuracy that is expected of the best trial that finished, the risk that it is refused deducted."""
        done = [math.log10(trial.strength) for trial in self.trials if trial.usable and trial.progress == 1]
        start = self.baseline.robust_accuracy
        gained = np.interp(done, self.grid, self.admitted * (self.robust - start))
        return start + max(gained, default=0.0)

    @property
    def grid(self) -> Array:
        """Logarithms of the strengths that are considered."""
        return _grid(self.low, self.high)

    @property
    def baseline_share(self) -> float:
        """Of the images that the baseline classifies correctly, those that withstand the attack."""
        return min(self.baseline.robust_accuracy / max(self.baseline.accuracy, 1e-9), 1.0)

    @cached_property
    def admitted(self) -> Array:
        """Probability that a trial at each strength of the grid is admissible, and measured to be."""
        return self.accuracy_weights @ self._admitted

    @property
    def _admitted(self) -> Array:
        return _admitted(self.baseline, self.low, self.high, self.images)

    @cached_property
    def robust(self) -> Array:
        """Expected robust accuracy at each strength of the grid."""
        return self.accuracy * self._share(self.share_weights @ self._gained)

    @cached_property
    def accuracy(self) -> Array:
        """Expected accuracy at each strength of the grid."""
        return self.accuracy_weights @ self._accuracies

    @cached_property
    def accuracy_if_admitted(self) -> Array:
        """Expected accuracy at each strength of the grid of a trial that the rule admits."""
        return self.accuracy_weights @ (self._admitted * self._accuracies) / np.maximum(self.admitted, 1e-12)

    @property
    def _accuracies(self) -> Array:
        return self.baseline.accuracy * _remaining(self.low, self.high)

    @property
    def _gained(self) -> Array:
        return _gained(self.low, self.high)

    def _share(self, gained: Array) -> Array:
        """The share that withstands, from how far it has come from the baseline's to 1."""
        return self.baseline_share + (1 - self.baseline_share) * gained

    @cached_property
    def accuracy_weights(self) -> Array:
        """Probability of each accuracy curve."""
        logs = np.zeros(len(self._accuracies))
        for trial in self.trials:
            if trial.usable:
                lost = max(self.baseline.accuracy - trial.accuracy, 0.0) * (1 - trial.progress)
                noise = math.hypot(NOISE, _binomial(trial.accuracy, trial.images), lost / 2)
                logs += _log_likelihood(_at(self._accuracies, self.grid, trial) - trial.accuracy, noise)
            else:
                logs += np.log(ACCIDENT + (1 - ACCIDENT) * (1 - _at(self._admitted, self.grid, trial)))
        return _normalized(logs)

    @cached_property
    def share_weights(self) -> Array:
        """Probability of each curve of the share that withstands the attack."""
        logs = np.zeros(len(self._gained))
        for trial in self.trials:
            if trial.usable:
                share = min(trial.robust_accuracy / trial.accuracy, 1.0)
                lost = (1 - trial.progress) * max(share - self.baseline_share, 0.1)
                noise = _binomial(trial.robust_accuracy, trial.attacked) / trial.accuracy
                expected = self._share(_at(self._gained, self.grid, trial))
                logs += _log_likelihood(expected - share, math.hypot(NOISE, noise, lost))
        return _normalized(logs + np.log(_fade_prior(self.low, self.high)))


def allocate(dials: Mapping[str, Dial]) -> str:
    """The regularizer whose next trial is expected to raise the best admissible robust accuracy of all the most.

    Each has `FAIR` trials before that. Trials that run count.
    """
    fewest = min(dials, key=lambda name: len(dials[name].trials) + len(dials[name].pending))
    if len(dials[fewest].trials) + len(dials[fewest].pending) < FAIR:
        return fewest
    best = max(dial.best for dial in dials.values())
    return max(dials, key=lambda name: dials[name].improvement(best).max())


@lru_cache(maxsize=8)
def _grid(low: float, high: float) -> Array:
    return np.linspace(math.log10(low), math.log10(high), POINTS)


@lru_cache(maxsize=8)
def _remaining(low: float, high: float) -> Array:
    """Accuracies relative to the baseline's: (curve, strength)."""
    return (1 - (1 - LOWEST_ACCURACY)[:, None, None] * _steps(_grid(low, high), SLOPES, 49)).reshape(-1, POINTS)


@lru_cache(maxsize=8)
def _gained(low: float, high: float) -> Array:
    """How far the share that withstands has come from the baseline's to 1: (curve, strength)."""
    grid = _grid(low, high)
    rising = _steps(grid, SHARE_SLOPES, 25).reshape(len(SHARE_SLOPES), -1, POINTS)
    kept = expit(-4 * (grid - _middles(grid, 25)[:, None] - FADES[:, None, None]))
    return (HIGHEST_SHARE[:, None, None, None, None] * rising[:, None] * kept).reshape(-1, POINTS)


@lru_cache(maxsize=8)
def _fade_prior(low: float, high: float) -> Array:
    """Of those curves."""
    count = len(_gained(low, high)) // (len(FADES) * 25)
    return np.tile(np.repeat(FADE_PRIOR, 25), count)


def _middles(grid: Array, count: int) -> Array:
    """Midpoints of curves, some beyond the range."""
    return np.linspace(grid[0] - 1.5, grid[-1] + 1.5, count)


def _steps(grid: Array, slopes: Array, midpoints: int) -> Array:
    """Logistic curves from 0 to 1: (slope and midpoint, strength)."""
    middles = _middles(grid, midpoints)
    return np.asarray(expit(slopes[:, None, None] * (grid - middles[:, None])).reshape(-1, POINTS))


@lru_cache(maxsize=8)
def _admitted(baseline: Baseline, low: float, high: float, images: int) -> Array:
    """Probability that a trial is admissible and measured to be, for each accuracy curve and strength.

    The first has the noise of the limit, the second that of the trial. Their product keeps a distance from the limit.
    """
    inside = baseline.accuracy * _remaining(low, high) - baseline.limit
    limit = math.hypot(NOISE / 2, _binomial(baseline.accuracy, baseline.images))
    measured = math.hypot(NOISE / 2, _binomial(baseline.limit, images))
    return np.asarray(ndtr(inside / limit) * ndtr(inside / measured - MARGIN))


def _binomial(share: float, images: int) -> float:
    """Standard deviation of a measured share; half an image on both sides, so that 0 and 1 have one too."""
    share = (share * images + 0.5) / (images + 1)
    return math.sqrt(share * (1 - share) / images)


def _at(curves: Array, grid: Array, trial: Measured) -> Array:
    """Values of all curves at a trial's strength, between the points of the grid on a line."""
    position = np.interp(math.log10(trial.strength), grid, np.arange(len(grid)))
    left = min(int(position), len(grid) - 2)
    return curves[:, left] + (position - left) * (curves[:, left + 1] - curves[:, left])


def _log_likelihood(deviation: Array, noise: float) -> Array:
    """Of Student's t, up to a constant."""
    return -(TAIL + 1) / 2 * np.log1p((deviation / noise) ** 2 / TAIL)


def _normalized(logs: Array) -> Array:
    weights = np.exp(logs - logs.max())
    return weights / weights.sum()
