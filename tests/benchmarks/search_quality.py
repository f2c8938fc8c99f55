"""How well each way to search finds what the selection rule should pick, replayed without training.

    python tests/benchmarks/search_quality.py                                # parametric worlds, some minutes
    python tests/benchmarks/search_quality.py --worlds 100 --searches dial,random
    python tests/benchmarks/search_quality.py --table FILE.csv               # measured curves of real trainings

A world gives the true accuracy and robust accuracy of every penalty at every strength and epoch. A search asks for
strengths, the baseline and all penalties in turn, and sees measurements with the noise of seeds, epochs and images; the
rule picks from these; what the pick is worth is read off the true curves. Prints for each search, way of stopping and
number of trials per penalty:

    winner   % of worlds in which the pick's penalty is the one that the rule would pick if it knew everything
    regret   points of robust accuracy missing to that one's; a pick truly outside the limit is worth the baseline
    lenient  the same with a pick outside the limit worth what it truly has, and at least 0
    inside   % of worlds in which the pick truly lies inside the limit, half a point allowed
    epochs   trained, per penalty and in whole trainings: 5 where each of 5 trials is trained to its end

once for the pick from the trials of the search, and once for the pick after a final round of three new seeds.

A table has the columns regularizer, strength, seed, epoch, accuracy, robust_accuracy; the baseline is `none` at
strength 0. Between two strengths both accuracies are read off the line in log strength, of one seed for a trial, and
the truth is the mean over the seeds.
"""

import argparse
import csv
import math
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from scipy.special import expit

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sweeps.dial import FAIR
from sweeps.dial_sampler import MAX_DROP, MEASURED, DialSampler, numbers
from sweeps.early_stopping import RuleScheduler
from trainer.metrics import VAL_ACCURACY, VAL_ATTACKED_EXAMPLES, VAL_EXAMPLES, VAL_ROBUST_ACCURACY

LOW, HIGH = 0.1, 1000.0
DROP, SLACK = 0.02, 0.005
BUDGETS = (1, 2, 3, 5, 8)
EARLY_ATTACKED = 32  # images attacked after every epoch but the last, as trainer.evaluate.plan has it
SEED_NOISE = (0.004, 0.008)  # standard deviation of accuracy and robust accuracy between seeds
EPOCH_NOISE = (0.003, 0.005)
FINALISTS, SEEDS, FIRST_NEW = 3, 3, 10_000
WAYS = {"once": "the pick from the trials of the search", "final": "the pick after a final round"}
Pair = tuple[float, float]


class World:
    """True accuracies of penalties along strength and epochs."""

    names: tuple[str, ...]
    epochs: int
    seed_noise: Pair = SEED_NOISE

    def truth(self, name: str, x: float, epoch: int) -> Pair:
        """Accuracy and robust accuracy at log10 strength x; the baseline is `none`."""
        raise NotImplementedError

    def trained(self, name: str, x: float, epoch: int, seed: int) -> Pair:
        """Of one training, before anything is measured."""
        return self.truth(name, x, epoch)

    def limit(self) -> float:
        return self.truth("none", 0.0, self.epochs)[0] - DROP

    def best(self) -> tuple[str, float]:
        """The penalty that the rule would pick if it knew everything, and its robust accuracy."""
        grid, found = np.linspace(math.log10(LOW), math.log10(HIGH), 201), {}
        for name in self.names:
            points = [self.truth(name, x, self.epochs) for x in grid]
            found[name] = max((robust for accuracy, robust in points if accuracy >= self.limit()), default=-1.0)
        name = max(found, key=lambda name: found[name])
        return name, found[name]


@dataclass
class Penalty:
    """Parameters of one penalty's curves; midpoints in log10 strength, slopes per factor of ten."""

    middle: float
    slope: float
    floor: float  # accuracy at infinite strength
    shape: str
    share_middle: float
    share_slope: float
    share: float  # of the images classified correctly, those that withstand at infinite strength
    fades: float  # log10 strength from which robustness is lost again
    early_loss: float  # of accuracy after the first epoch, relative to the loss at the end
    early_gain: float  # of robustness


class Parametric(World):
    """17 penalties. `logistic`: plain curves; `rough`: other shapes, collapse, robustness that is lost again, limits
    beyond either end of the range."""

    def __init__(self, seed: int, rough: bool) -> None:
        draw = np.random.default_rng((seed, rough))
        self.epochs, self.chance = 4, 0.1
        self.base, self.base_share = draw.uniform(0.75, 0.92), draw.uniform(0.02, 0.1)
        self.penalties = {f"p{number}": self._penalty(draw, rough) for number in range(17)}
        self.names = tuple(self.penalties)

    def _penalty(self, draw: np.random.Generator, rough: bool) -> Penalty:
        middle = draw.uniform(0, 3.5)
        useful = draw.random() < 0.7
        penalty = Penalty(
            middle=middle,
            slope=math.exp(draw.uniform(math.log(1.5), math.log(6))),
            floor=self.chance if draw.random() < 0.6 else draw.uniform(self.chance, 0.95 * self.base),
            shape="logistic",
            share_middle=middle - draw.uniform(0, 1.8),
            share_slope=draw.uniform(1.5, 5),
            share=draw.uniform(0.2, 0.75) if useful else draw.uniform(0.02, 0.15),
            fades=math.inf,
            early_loss=draw.uniform(0.6, 1.6),
            early_gain=draw.uniform(0.5, 0.9),
        )
        if rough:
            penalty.shape = str(draw.choice(["logistic", "power", "cliff", "collapse"]))
            kind = draw.random()
            if kind < 0.15:  # even the weakest strength costs too much
                penalty.middle, penalty.floor = draw.uniform(-3, -1.5), self.chance
            elif kind < 0.3:  # even the strongest costs little, and robustness still rises
                penalty.middle, penalty.share_middle = 6.0, draw.uniform(1.5, 3)
            elif kind < 0.45:
                penalty.fades = penalty.share_middle + draw.uniform(0.3, 1.2)
        return penalty

    def truth(self, name: str, x: float, epoch: int) -> Pair:
        if name == "none":
            accuracy, share, early_loss, early_gain = self.base, self.base_share, 1.0, 1.0
        else:
            p = self.penalties[name]
            lost = (self.base - p.floor) * self._lost(p, x)
            share = self.base_share + max(p.share - self.base_share, 0) * expit(p.share_slope * (x - p.share_middle))
            share = share * expit(-6 * (x - p.fades)) if x > p.fades - 2 else share
            accuracy, early_loss, early_gain = self.base - lost, p.early_loss, p.early_gain
            if p.shape == "collapse" and x > p.middle:  # always the same class
                accuracy, share = self.chance, 1.0
        left = ((self.epochs - epoch) / (self.epochs - 1)) ** 2  # of the change from first to last epoch
        accuracy_now = self.base - 0.02 * left - (self.base - accuracy) * (1 + (early_loss - 1) * left)
        share_now = self.base_share + (share - self.base_share) * (1 - (1 - early_gain) * left)
        accuracy_now = max(accuracy_now, self.chance)
        return accuracy_now, max(accuracy_now * share_now, 0.0)

    @staticmethod
    def _lost(p: Penalty, x: float) -> float:
        """Share of the accuracy that can be lost."""
        match p.shape:
            case "power":
                return min(0.5 * 10 ** (0.5 * (x - p.middle)), 1.0)
            case "cliff":
                return float(np.interp(x, [p.middle - 1.5, p.middle, p.middle + 0.2], [0, 0.1, 1]))
        return float(expit(p.slope * (x - p.middle)))


class Measurements(World):
    """Curves from a table of trials that were really trained."""

    seed_noise = (0.0, 0.0)  # the table's seeds have it

    def __init__(self, path: Path) -> None:
        points: dict[tuple[str, int, int], list[tuple[float, float, float]]] = defaultdict(list)
        with path.open() as file:
            for row in csv.DictReader(file):
                strength = float(row["strength"] or 0)
                x = math.log10(strength) if strength else 0.0
                key = row["regularizer"], int(row["seed"]), int(row["epoch"])
                points[key].append((x, float(row["accuracy"]), float(row["robust_accuracy"])))
        self.curves = {key: np.array(sorted(found)).T for key, found in points.items()}
        self.epochs = max(epoch for _, _, epoch in self.curves)
        self.seeds: dict[str, list[int]] = defaultdict(list)
        for name, seed, epoch in sorted(self.curves):
            if epoch == self.epochs:
                self.seeds[name].append(seed)
        self.names = tuple(name for name in self.seeds if name != "none")

    def trained(self, name: str, x: float, epoch: int, seed: int) -> Pair:
        seeds = self.seeds[name]
        xs, accuracies, robust = self.curves[name, seeds[seed % len(seeds)], epoch]
        return float(np.interp(x, xs, accuracies)), float(np.interp(x, xs, robust))

    def truth(self, name: str, x: float, epoch: int) -> Pair:
        found = [self.trained(name, x, epoch, seed) for seed in range(len(self.seeds[name]))]
        return float(np.mean([a for a, _ in found])), float(np.mean([r for _, r in found]))


@dataclass
class Trial:
    """One trial of a search and what it has measured, epoch by epoch."""

    number: int
    name: str
    x: float
    epochs: int
    accuracy: list[float] = field(default_factory=list)
    robust: list[float] = field(default_factory=list)
    stopped: bool = False

    @property
    def ended(self) -> bool:
        return self.stopped or self.finished

    @property
    def finished(self) -> bool:
        return len(self.accuracy) == self.epochs


@dataclass(frozen=True)
class Images:
    """How many accuracies are measured on: at the end, after an epoch before it, attacked at the end and before it."""

    clean: int
    early: int
    attacked: int
    early_attacked: int = EARLY_ATTACKED


class Lab:
    """Measures trials of a world."""

    def __init__(self, world: World, images: Images, seed: int) -> None:
        self.world, self.images, self.draw = world, images, np.random.default_rng(seed)
        self.offsets: dict[int, Pair] = {}

    def epoch(self, trial: Trial) -> None:
        """Train and measure one more epoch."""
        if trial.number not in self.offsets:
            self.offsets[trial.number] = tuple(self.draw.normal(0, self.world.seed_noise))
        epoch = len(trial.accuracy) + 1
        true = self.world.trained(trial.name, trial.x, epoch, trial.number // (len(self.world.names) + 1))
        # A network that has lost everything does not vary any more.
        noise = (np.array(self.offsets[trial.number]) + self.draw.normal(0, EPOCH_NOISE)) * min(true[0], 0.5) / 0.5
        accuracy = float(np.clip(true[0] + noise[0], 0, 1))
        robust = float(np.clip(true[1] + noise[1], 0, accuracy))
        last = epoch == trial.epochs
        clean = self.images.clean if last else self.images.early
        attacked = self.images.attacked if last else self.images.early_attacked
        trial.accuracy.append(self.draw.binomial(clean, accuracy) / clean)
        trial.robust.append(self.draw.binomial(attacked, robust) / attacked)


class Search:
    """A sampler of Optuna over one study, as `sweeps.search` has it; it proposes log10 strengths.

    Args:
        names: of the penalties.
        trials: per penalty.
        images: behind measurements.
        seed: of its random numbers.
    """

    constrained = False

    def __init__(self, names: tuple[str, ...], trials: int, images: Images, seed: int) -> None:
        self.names, self.trials, self.images = names, trials, images
        self.asked: dict[int, optuna.Trial] = {}
        self.studies: dict[str, optuna.Study] = {}
        self.seed = seed

    def sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        return optuna.samplers.RandomSampler(seed)

    def study(self, name: str) -> optuna.Study:
        if "" not in self.studies:
            self.studies[""] = optuna.create_study(direction="maximize", sampler=self.sampler(self.seed))
            self.studies[""].set_user_attr(MAX_DROP, DROP)
        return self.studies[""]

    def next_name(self, number: int, trials: Sequence[Trial]) -> str | None:
        """In turn, the baseline first; None leaves it to the sampler."""
        return ("none", *self.names)[number % (len(self.names) + 1)]

    def propose(self, number: int, trials: Sequence[Trial]) -> tuple[str, float]:
        name = self.next_name(number, trials)
        study = self.study(name or "")
        if name:
            study.enqueue_trial({"regularizer": name} | self.fixed(name, trials))
        asked = self.asked[number] = study.ask()
        name = asked.suggest_categorical("regularizer", ["none", *self.names])
        return name, 0.0 if name == "none" else math.log10(asked.suggest_float(f"weight_{name}", LOW, HIGH, log=True))

    def fixed(self, name: str, trials: Sequence[Trial]) -> dict[str, float]:
        return {}

    def end(self, trial: Trial, trials: Sequence[Trial]) -> None:
        """A trial ended."""
        asked, study = self.asked.pop(trial.number), self.study(trial.name)
        limit = limit_of(trials)
        if self.constrained and limit is not None:
            asked.set_constraint("accuracy", limit - trial.accuracy[-1])
        asked.set_user_attr(MEASURED, numbers(result(trial, self.images), trial.epochs))
        asked.report(trial.robust[-1], len(trial.robust))
        if trial.stopped:
            study.tell(asked, state=optuna.trial.TrialState.PRUNED)
        else:
            study.tell(asked, trial.robust[-1])


class Grid(Search):
    """As many strengths as trials, equally far apart in their logarithms, half that from the ends."""

    def fixed(self, name: str, trials: Sequence[Trial]) -> dict[str, float]:
        if name == "none":
            return {}
        share = (sum(trial.name == name for trial in trials) % self.trials + 0.5) / self.trials
        return {f"weight_{name}": LOW * (HIGH / LOW) ** share}


class ByDial(Search):
    """`sweeps.dial_sampler`."""

    constrained = True

    def sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        return DialSampler(dict.fromkeys(self.names, (LOW, HIGH)), dict.fromkeys(self.names, 1.0), seed)


class Adaptive(ByDial):
    """The same with trials moved to the penalties that can still win."""

    def next_name(self, number: int, trials: Sequence[Trial]) -> str | None:
        return super().next_name(number, trials) if number < FAIR * (len(self.names) + 1) else None


class Tpe(Search):
    """Optuna's TPE by robust accuracy alone."""

    def sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        return optuna.samplers.TPESampler(constant_liar=True, seed=seed)


class ConstrainedTpe(Tpe):
    """The same with the accuracy limit as a constraint, as `--sampler tpe` has it."""

    constrained = True


class Gp(ConstrainedTpe):
    """Optuna's Gaussian process with the constraint; it cannot do conditional spaces, so a study for each penalty."""

    def sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        return optuna.samplers.GPSampler(seed=seed, n_startup_trials=1)

    def study(self, name: str) -> optuna.Study:
        if name not in self.studies:
            sampler = self.sampler(self.seed + len(self.studies))
            self.studies[name] = optuna.create_study(direction="maximize", sampler=sampler)
        return self.studies[name]

    def propose(self, number: int, trials: Sequence[Trial]) -> tuple[str, float]:
        name = super().next_name(number, trials)
        asked = self.asked[number] = self.study(name).ask()
        return name, 0.0 if name == "none" else math.log10(asked.suggest_float("weight", LOW, HIGH, log=True))


SEARCHES: dict[str, type[Search]] = {
    "random": Search,
    "grid": Grid,
    "tpe": Tpe,
    "tpe+limit": ConstrainedTpe,
    "gp+limit": Gp,
    "dial": ByDial,
    "adaptive": Adaptive,
}


def result(trial: Trial, images: Images) -> dict[str, float]:
    """What Tune would have of its last epoch."""
    clean, attacked = (images.clean, images.attacked) if trial.finished else (images.early, images.early_attacked)
    return {
        "epoch": len(trial.accuracy), VAL_ACCURACY: trial.accuracy[-1], VAL_ROBUST_ACCURACY: trial.robust[-1],
        VAL_EXAMPLES: clean, VAL_ATTACKED_EXAMPLES: attacked,
    }  # fmt: skip


Stops = Callable[[Trial, Images], bool]


def by(scheduler: TrialScheduler, measured: Callable[[Trial, Images], dict[str, Any]]) -> Stops:
    """Whether a scheduler of Tune stops a trial."""

    def stops(trial: Trial, images: Images) -> bool:
        stub: Any = SimpleNamespace(trial_id=str(trial.number), config={"regularizer": trial.name})
        if len(trial.robust) == 1:
            scheduler.on_trial_add(None, stub)  # type: ignore[arg-type]
        decision = scheduler.on_trial_result(None, stub, measured(trial, images))  # type: ignore[arg-type]
        return decision == "STOP" and trial.name != "none" and not trial.finished

    return stops


def asha(epochs: int) -> Stops:
    """By robust accuracy, from a quarter of the training on."""
    scheduler = ASHAScheduler(
        "epoch", "robust", "max", max_t=epochs + 1, grace_period=max(epochs // 4, 1), reduction_factor=2
    )
    stops = by(scheduler, lambda trial, images: {"epoch": len(trial.robust), "robust": trial.robust[-1]})
    return lambda trial, images: trial.name != "none" and stops(trial, images)


def by_rule(epochs: int) -> Stops:
    """As the product has it."""
    return by(RuleScheduler((), epochs, DROP), result)


STOPPING: dict[str, Callable[[int], Stops] | None] = {"none": None, "asha": asha, "rule": by_rule}


def limit_of(trials: Sequence[Trial]) -> float | None:
    """The rule's limit, from the mean of the baselines so far."""
    found = [trial.accuracy[-1] for trial in trials if trial.name == "none" and trial.finished]
    return float(np.mean(found)) - DROP if found else None


def run(search: Search, lab: Lab, stopping: Callable[[int], Stops] | None, total: int, parallel: int) -> list[Trial]:
    """All trials of a search, so many at a time, an epoch of each in turn."""
    trials: list[Trial] = []
    stops = stopping(lab.world.epochs) if stopping else None
    running: list[Trial] = []
    while running or len(trials) < total:
        while len(running) < parallel and len(trials) < total:
            trial = Trial(len(trials), *search.propose(len(trials), trials), lab.world.epochs)
            trials.append(trial)
            running.append(trial)
        for trial in list(running):
            lab.epoch(trial)
            trial.stopped = stops is not None and stops(trial, lab.images)
            if trial.ended:
                running.remove(trial)
                search.end(trial, trials)
    return trials


def admitted(trials: Sequence[Trial]) -> list[Trial]:
    """Trials that the rule admits, the most robust first."""
    limit = limit_of(trials)
    assert limit is not None
    kept = (t for t in trials if t.finished and t.accuracy[-1] >= limit)
    return sorted(kept, key=lambda t: -t.robust[-1])


def final_round(lab: Lab, trials: Sequence[Trial]) -> tuple[Trial | None, int]:
    """The pick by means over new seeds, and how many trials that took.

    The best strengths of the three best penalties are trained again. One that the rule now refuses is replaced by the
    next of the ranking, which may be a weaker one of the same penalty, at most as many times.
    """
    limit, tried = limit_of(trials), 0
    stands: dict[str, tuple[float, Trial]] = {}
    for finalist in admitted(trials):
        if len(stands) == FINALISTS or tried == 2 * FINALISTS:
            break
        if finalist.name == "none" or finalist.name in stands:
            continue
        numbers = range(FIRST_NEW + SEEDS * tried, FIRST_NEW + SEEDS * (tried + 1))
        again = [Trial(number, finalist.name, finalist.x, finalist.epochs) for number in numbers]
        for trial in again * finalist.epochs:
            lab.epoch(trial)
        tried += 1
        if np.mean([trial.accuracy[-1] for trial in again]) >= limit:
            stands[finalist.name] = float(np.mean([trial.robust[-1] for trial in again])), finalist
    picked = max(stands.values(), key=lambda found: found[0], default=(0.0, None))[1]
    return picked, SEEDS * tried


def judge(world: World, best: tuple[str, float], picked: Trial | None, trained: float) -> dict[str, float]:
    """The pick against the true curves; `trained` is the number of epochs."""
    baseline = world.truth("none", 0.0, world.epochs)
    name, (accuracy, robust) = "none", baseline
    if picked is not None:
        name, (accuracy, robust) = picked.name, world.truth(picked.name, picked.x, world.epochs)
    inside = accuracy >= world.limit() - SLACK
    return {
        "winner": 100.0 * (name == best[0]),
        "regret": 100 * max(best[1] - (robust if inside else baseline[1]), 0.0),
        "lenient": 100 * max(best[1] - robust, 0.0),
        "inside": 100.0 * inside,
        "epochs": trained / (len(world.names) + 1) / world.epochs,
    }


def replay(
    name: str,
    stopping: str,
    world: World,
    images: Images,
    *,
    seed: int,
    parallel: int,
    budgets: Sequence[int] = BUDGETS,
) -> Iterator[tuple[tuple[int, str], dict[str, float]]]:
    """Figures of one search in one world, for each number of trials per penalty and way to pick."""
    best, size = world.best(), len(world.names) + 1
    # The first trials of a long search are those of a short one, except where the number decides which they are.
    for most in budgets if name == "grid" else budgets[-1:]:
        search = SEARCHES[name](world.names, most, images, seed)
        lab = Lab(world, images, seed)
        trials = run(search, lab, STOPPING[stopping], most * size, parallel)
        for budget in budgets if name != "grid" else (most,):
            done = trials[: budget * size]
            trained = sum(len(trial.accuracy) for trial in done)
            yield (budget, "once"), judge(world, best, next(iter(admitted(done)), None), trained)
            picked, repeated = final_round(lab, done)
            yield (budget, "final"), judge(world, best, picked, trained + repeated * world.epochs)


Figures = dict[tuple[str, str, int], dict[str, float]]


def bars(figures: Figures) -> Iterator[str]:
    """Which of the aims hold."""

    def says(what: str, value: float, aim: float, holds: bool) -> str:
        return f"{'holds' if holds else 'FAILS'} {what}: {value:.2f}, aim {aim:.2f}"

    random = {budget: found for (name, way, budget), found in figures.items() if (name, way) == ("random", "none")}
    for stopping in STOPPING:
        own = {budget: found for (name, way, budget), found in figures.items() if (name, way) == ("dial", stopping)}
        if not own or not random:
            continue
        print(f"dial, stopping {stopping}:")
        for key in ("regret", "lenient"):
            value, aim = own[5][key], random[5][key] / 3
            yield says(f"{key} at 5 trials, aim a third of random's", value, aim, value <= aim)
        value, aim = own[5]["epochs"], random[5]["epochs"]
        yield says("epochs at 5 trials, aim random's", value, aim, value <= aim)
        for rival in STOPPING:
            tpe = figures.get(("tpe", rival, 5))
            if tpe:
                value, aim = own[5]["winner"], 2 * tpe["winner"]
                yield says(f"right winner at 5 trials, aim twice TPE's (stopping {rival})", value, aim, value >= aim)
        value = own[5]["inside"]
        yield says("inside the limit at 5 trials", value, 90, value >= 90)
        for budget in (5, 8):
            equal = [found["epochs"] for found in own.values() if found["regret"] <= random[budget]["regret"]]
            value, aim = min(equal, default=math.inf), random[budget]["epochs"] / 2
            yield says(f"epochs for random's regret at {budget} trials, aim half of random's", value, aim, value <= aim)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--worlds", type=int, default=20, help="of each kind")
    parser.add_argument("--kinds", default="logistic,rough")
    parser.add_argument("--table", type=Path, help="measured curves instead; --worlds is how often they are replayed")
    parser.add_argument("--searches", default=",".join(SEARCHES))
    parser.add_argument("--stopping", default=",".join(STOPPING))
    parser.add_argument("--images", type=int, default=2500, help="behind the accuracy of a whole trial")
    parser.add_argument("--early-images", type=int, default=500, help="behind that after an epoch")
    parser.add_argument("--attacked", type=int, default=256, help="images attacked at the end")
    parser.add_argument("--parallel", type=int, default=4, help="trials at a time")
    parser.add_argument("--seed", type=int, default=0, help="of the first world")
    return parser.parse_args()


def main() -> None:
    args = parse()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    images = Images(args.images, min(args.early_images, args.images), args.attacked)
    kinds = ("table",) if args.table else tuple(args.kinds.split(","))
    for kind in kinds:
        collected: dict[str, dict[tuple[str, str, int], list[dict[str, float]]]] = {
            way: defaultdict(list) for way in WAYS
        }
        seconds: dict[str, float] = defaultdict(float)
        for seed in range(args.seed, args.seed + args.worlds):
            world = Measurements(args.table) if args.table else Parametric(seed, kind == "rough")
            for name in args.searches.split(","):
                for stopping in args.stopping.split(","):
                    started = time.monotonic()
                    found = replay(name, stopping, world, images, seed=seed, parallel=args.parallel)
                    for (budget, way), figures in found:
                        collected[way][name, stopping, budget].append(figures)
                    seconds[name] += time.monotonic() - started
        for way, title in WAYS.items():
            cells = collected[way].items()
            means = {key: {m: float(np.mean([f[m] for f in found])) for m in found[0]} for key, found in cells}
            report(f"{kind}, {title}", args.worlds, means)
        print("seconds: " + ", ".join(f"{name} {spent:.0f}" for name, spent in seconds.items()))


def report(kind: str, worlds: int, means: Figures) -> None:
    """The table and the bars."""
    print(f"\n{kind}: {worlds} worlds; winner % / regret / lenient regret / inside % / epochs at that many trials")
    print(f"{'search':10} {'stops':5} " + " ".join(f"{budget:^25}" for budget in BUDGETS))
    for name, stopping in dict.fromkeys(key[:2] for key in means):
        cells = []
        for budget in BUDGETS:
            f = means[name, stopping, budget]
            cells.append(
                f"{f['winner']:3.0f} {f['regret']:5.1f} {f['lenient']:5.1f} {f['inside']:4.0f} {f['epochs']:4.2f}"
            )
        print(f"{name:10} {stopping:5} " + " | ".join(cells))
    for line in bars(means):
        print(line)


if __name__ == "__main__":
    main()
