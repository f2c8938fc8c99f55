"""What a sweep starts from and what it can tell apart: known before the search, warned of where it is too little."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.special import betaincinv, ndtri

from trainer.cache import ShardCache
from trainer.config import Trial
from trainer.evaluate.measure import evaluate
from trainer.evaluate.plan import Plan
from trainer.fit import count_classes, prepare_model
from trainer.locations import read_json, write_json
from trainer.metrics import VAL_ACCURACY, VAL_EXAMPLES, VAL_MAJORITY
from trainer.shards import evaluation_splits, read_shards
from trainer.shards.find import few

FILE = "start.json"
LEVEL = 0.95
MOST_MEASURED = 2000  # images: ± 2.2 points, which tells from chance, and far fewer passes than the calibration takes
FEWEST_STEPS = 10  # an epoch: momentum of 0.9 adds up 1 / (1 - 0.9) gradients, earlier a step is not yet a whole one
LARGEST_TIE = 0.1  # above it, even the large effects of a penalty on robust accuracy are within the noise
FEWEST_DISCORDANT = 6  # McNemar's exact test rejects none of fewer: 2 * 0.5**5 > 1 - LEVEL


@dataclass(frozen=True, kw_only=True)
class StartCheck:
    """The start checkpoint on the val split, and how finely trials are measured there.

    Args:
        accuracy: accuracy of the start checkpoint, as a fraction of 1.
        measured: images that this accuracy is of, spread over the val split.
        chance: share of the most frequent class among them: what a net has right that knows nothing of an image. It is
            1 / classes where all are equally frequent, and more elsewhere.
        checkpoint: whether there is one; trials without train from scratch.
        val_images: number of images of the split, on which a trial's accuracy is measured at its end.
        attacked: number of those on which its robust accuracy is measured.
        empty: classes without a train image, where the shards were counted here.
    """

    accuracy: float
    measured: int
    chance: float
    classes: int
    checkpoint: bool
    val_images: int
    attacked: int
    steps_per_epoch: int
    epochs: int
    empty: tuple[str, ...] = ()

    @property
    def total_steps(self) -> int:
        """Number of steps of each trial."""
        return self.steps_per_epoch * self.epochs

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the accuracy."""
        return interval(round(self.accuracy * self.measured), self.measured)

    @property
    def at_chance(self) -> bool:
        """Whether the accuracy's interval contains chance or lies below it."""
        return self.interval[0] <= self.chance

    @property
    def accuracy_tie(self) -> float:
        """Accuracies of two trials that are closer, as a fraction of 1, are a tie.

        Taken at the accuracy of the start checkpoint, or where that is at chance, and trials will leave it, at the
        most uncertain of all, 1/2.
        """
        return smallest_difference(self.val_images, 0.5 if self.at_chance else self.accuracy)

    @property
    def robust_tie(self) -> float:
        """The same for robust accuracies, of which nothing is known before the search."""
        return smallest_difference(self.attacked, 0.5)

    @property
    def line(self) -> str:
        """The facts for a terminal."""
        rest = "" if self.measured == self.val_images else f" out of {self.val_images}"
        return (
            f"start: accuracy {_percent(self.accuracy)} % of {_count(self.measured, 'val image')}{rest} (chance "
            f"{_percent(self.chance)} %); {_count(self.steps_per_epoch, 'step')} an epoch; {self._ties}"
        )

    @property
    def sentences(self) -> str:
        """The facts for a page."""
        start = "The start checkpoint" if self.checkpoint else "Before training, the model"
        return (
            f"{start} classifies {_percent(self.accuracy)} % of {_count(self.measured, 'val image')} correctly "
            f"({self._interval}); chance, always answering the most frequent of {_count(self.classes, 'class')}, is "
            f"{_percent(self.chance)} %. A trial takes {_count(self.steps_per_epoch, 'step')} an epoch, "
            f"{self.total_steps} in all, and is measured on {_count(self.val_images, 'val image')}, {self.attacked} of "
            f"them attacked: {self._ties}."
        )

    @property
    def warnings(self) -> list[str]:
        """What keeps the sweep from an answer, each in a sentence that ends with what to do."""
        found = []
        if self.at_chance and not self.checkpoint:
            found.append(
                "There is no checkpoint, so trials train from scratch and weights are calibrated on an untrained net; "
                "give one with `checkpoint`."
            )
        elif self.at_chance:
            found.append(
                f"The start checkpoint is at chance, as far as {_count(self.measured, 'val image')} can tell: it has "
                f"{_percent(self.accuracy)} % right ({self._interval}), always answering the most frequent class has "
                f"{_percent(self.chance)} %; check that it was trained on these classes in this order, or give it a "
                "new head with `new_head`."
            )
        if self.empty:
            found.append(
                f"{len(self.empty)} of {_count(self.classes, 'class')} have no train image ({few(self.empty)}); check "
                "that the list of class names is in the order of the labels, which count from 0, and names no more "
                "than there are."
            )
        if self.steps_per_epoch < FEWEST_STEPS:
            found.append(
                f"An epoch has {_count(self.steps_per_epoch, 'step')}, fewer than the {FEWEST_STEPS} that momentum "
                "takes to build up, so what is measured after it says little about a weight; lower "
                "`batch_size` or raise `images_per_epoch`."
            )
        if self.accuracy_tie > LARGEST_TIE:
            found.append(
                f"The val split has only {_count(self.val_images, 'image')}, so two trials closer than "
                f"{_percent(self.accuracy_tie)} points in accuracy are a tie; put more images into it."
            )
        if self.robust_tie > LARGEST_TIE:
            more = "raise `robust_images`" if self.attacked < self.val_images else "put more into the val split"
            found.append(
                f"Only {_count(self.attacked, 'image')} will be attacked, so two trials closer than "
                f"{_percent(self.robust_tie)} points in robust accuracy are a tie; {more}."
            )
        return found

    @property
    def _interval(self) -> str:
        low, high = self.interval
        return f"95 % interval {_percent(low)} to {_percent(high)} %"

    @property
    def _ties(self) -> str:
        return (
            f"two trials closer than {_percent(self.accuracy_tie)} points in accuracy or "
            f"{_percent(self.robust_tie)} in robust accuracy are a tie"
        )

    @property
    def metrics(self) -> dict[str, float]:
        """The facts by the names they have in MLflow; accuracies and their differences as fractions of 1."""
        low, high = self.interval
        values: dict[str, float] = {
            "accuracy": self.accuracy,
            "accuracy_low": low,
            "accuracy_high": high,
            "chance": self.chance,
            "classes": self.classes,
            "measured_images": self.measured,
            "val_images": self.val_images,
            "attacked_images": self.attacked,
            "steps_per_epoch": self.steps_per_epoch,
            "accuracy_tie": self.accuracy_tie,
            "robust_accuracy_tie": self.robust_tie,
        }
        return {f"start/{name}": float(value) for name, value in values.items()}


def interval(hits: int, images: int) -> tuple[float, float]:
    """95 % interval of a share of which `hits` of `images` were counted; all of [0, 1] where there are none.

    References:
        Clopper, Pearson: The Use of Confidence or Fiducial Limits Illustrated in the Case of the Binomial.
        Biometrika 26, 1934. It covers at least as often as it says, for any share and number.
    """
    tail = (1 - LEVEL) / 2
    low = float(betaincinv(hits, images - hits + 1, tail)) if hits else 0.0
    high = float(betaincinv(hits + 1, images - hits, 1 - tail)) if hits < images else 1.0
    return low, high


def smallest_difference(images: int, accuracy: float) -> float:
    """Smallest difference of the accuracies of two trials on the same images that is more than chance at 95 %.

    McNemar's test counts the images that only one of the two classifies correctly, b and c: the trials differ where
    |b − c| > z √(b + c), z = 1.96. Of n images b + c is at most about 2 n p (1 − p) at accuracy p, as many as of trials
    that err independently; trials of one sweep share their start and err on the same images more often. So the
    difference |b − c| / n that returns, z √(2 p (1 − p) / n), is on the safe side, as large as for two trials on
    different images. It is at least 6 / n: no fewer images that only one has right are significant in the exact test.

    What chance does elsewhere comes on top: another seed, and the best of many trials.

    Args:
        images: n, on which both are measured.
        accuracy: p of both, a fraction of 1.

    Returns:
        A fraction of 1.

    References:
        McNemar: Note on the Sampling Error of the Difference between Correlated Proportions or Percentages.
        Psychometrika 12, 1947.
        Dietterich: Approximate Statistical Tests for Comparing Supervised Classification Learning Algorithms.
        Neural Computation 10, 1998.
    """
    z = float(ndtri((1 + LEVEL) / 2))
    return min(1.0, max(z * math.sqrt(2 * accuracy * (1 - accuracy) / images), FEWEST_DISCORDANT / images))


def measure(
    trial: Trial,
    workers: int,
    device: torch.device,
    cache: ShardCache,
    progress: Callable[[str, float], None] = lambda stage, done: None,
) -> StartCheck:
    """Measure the model that every trial starts from, in this process.

    Args:
        trial: model, checkpoint, data and how long trials train; its regularizer does not matter.
        progress: callback as in `evaluate`.

    Raises:
        UsageError: if data, model and checkpoint do not fit together, or too many images are broken.
    """
    val, _ = evaluation_splits(trial.data)
    classes = count_classes(trial.data)
    plan = Plan(examples=MOST_MEASURED, attacked=0, attacks=(), majority=True)
    here = dataclasses.replace(trial, loader_workers=0)  # for 2,000 images no processes are started
    found = evaluate(prepare_model(trial, classes).to(device), val, here, plan, device, cache, progress)
    return StartCheck(
        accuracy=found[VAL_ACCURACY],
        measured=int(found[VAL_EXAMPLES]),
        chance=found[VAL_MAJORITY],
        classes=classes,
        checkpoint=trial.checkpoint is not None,
        val_images=val.total,
        attacked=min(trial.robust_images, val.total),
        steps_per_epoch=trial.steps_per_epoch(workers),
        epochs=trial.epochs,
        empty=read_shards(trial.data, "train").empty,
    )


def keep(folder: str, start: StartCheck) -> None:
    """Write it into the sweep's folder."""
    write_json(f"{folder}/{FILE}", dataclasses.asdict(start))


def kept(folder: str) -> StartCheck | None:
    """What the sweep's folder has, None if it was never measured."""
    found = read_json(f"{folder}/{FILE}")
    return None if found is None else StartCheck(**found | {"empty": tuple(found.get("empty", ()))})


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _count(number: int, noun: str) -> str:
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"
