"""Tunable fields other than `weight`: searched or fixed, trained with, carried on and shown."""

import csv
import dataclasses
import io
import json
from dataclasses import dataclass
from types import SimpleNamespace

import optuna
import pytest
import torch
from recorded import begin, report
from rich.console import Console

from regularizers import REGULARIZERS, Regularizer
from regularizers.base import tunable
from sweeps import finalists, ranking, status, train_on, trainable
from sweeps.checks import check_fixed, check_ranges
from sweeps.events import TrialEnded
from sweeps.importance import importances
from sweeps.outcomes import trial_of, trial_started
from sweeps.progress import Progress
from sweeps.proposals import named, settings_of, weight_of
from sweeps.provenance import search_space
from sweeps.ranking import Row
from sweeps.recording import start_sweep
from sweeps.report.page import description, settings, write_report
from sweeps.results import SweepResult, TrialResult
from sweeps.search import METRIC, Space, make_search
from sweeps.settings import Sweep
from sweeps.trials import read_trials
from trainer.cache import ShardCache
from trainer.calibrate import calibrate
from trainer.config import Trial, UsageError
from trainer.placement import Placement

FIELDS = {"psnr_hvs.error", "psnr_hvs.structure", "psnr_hvs.edge"}
UNITS = {"l2": 2.0, "psnr_hvs": 0.5, "tv": 3.0}
CHANGED = {"error": 0.5, "edge": 0.25}
FIGURES = dict.fromkeys(finalists.FIGURES, 0.5)


@dataclass(frozen=True, kw_only=True)
class Counted(Regularizer):
    weight: float = tunable(0.5, 0.1, 1000.0)
    times: int = tunable(2, 1, 64, log=True)
    small: float = tunable(1e-3, 1e-6, 1.0, log=True)
    plain: float = 7.0

    def formula(self, heatmap, images):
        return heatmap.square().mean(dim=(1, 2, 3))


@pytest.fixture
def counted(monkeypatch):
    monkeypatch.setitem(REGULARIZERS, "counted", Counted)


@pytest.fixture
def sweep(tmp_path):
    sweep = Sweep(
        name="s", storage=str(tmp_path), tracking_uri=f"sqlite:///{tmp_path}/mlflow.db",
        trial=Trial(data="nowhere", model="resnet8", epochs=2), regularizers=("l2", "psnr_hvs"),
        trials_per_regularizer=2, placement=Placement(gpus_per_worker=0.0, cpus_per_worker=1.0),
    )  # fmt: skip
    sweep.local_folder.mkdir()
    return sweep


def proposals(sweep, number):
    """What the search proposes, each trial ended with a result of its own."""
    search = make_search(sweep, UNITS)
    configs = []
    for i in range(number):
        configs.append(search.suggest(f"t{i}"))
        result = {METRIC: 1 / (1 + weight_of(configs[-1])), "val/accuracy": 0.9, "epoch": 2, "training_iteration": 1}
        search.on_trial_complete(f"t{i}", result)
    return configs


def psnr_hvs(configs):
    return [config for config in configs if config["regularizer"] == "psnr_hvs"]


@pytest.mark.parametrize("allocation", ["equal", "adaptive"])
def test_proposals_of_weights_alone_are_what_they_were(sweep, allocation):
    """The define-by-run function that knows of weights only, by the same sampler of Optuna."""

    def weights_alone(trial):
        name = trial.suggest_categorical("regularizer", ["none", "l2", "tv"])
        if name == "none":
            return {"regularizer": name}
        low, high = (strength * UNITS[name] for strength in REGULARIZERS[name].strengths())
        return {"regularizer": name, f"weight_{name}": trial.suggest_float(f"weight_{name}", low, high, log=True)}

    sweep = dataclasses.replace(
        sweep, regularizers=("l2", "tv"), sampler="tpe", allocation=allocation, trials_per_regularizer=8
    )
    search, together = make_search(sweep, UNITS), allocation == "adaptive"
    sampler = optuna.samplers.TPESampler(multivariate=together, group=together, constant_liar=True, seed=0)
    before = optuna.create_study(sampler=sampler, direction="maximize")
    for trial in search.study.get_trials():
        before.enqueue_trial(trial.system_attrs["fixed_params"])
    for number in range(24):
        config, asked = search.suggest(f"t{number}"), before.ask()
        assert {key: value for key, value in config.items() if key not in ("seed", "number")} == weights_alone(asked)
        value = 1 / (1 + weight_of(config))
        search.on_trial_complete(f"t{number}", {METRIC: value, "val/accuracy": 0.9, "epoch": 2})
        before.tell(asked, value)


def test_every_tunable_field_is_searched_in_its_range(sweep):
    configs = proposals(sweep, 6)
    (first, second) = psnr_hvs(configs)
    for config in (first, second):
        assert set(named("psnr_hvs", settings_of(config))) == FIELDS
        assert all(0 <= config[name] <= 1 for name in FIELDS)
    assert len({config[name] for config in (first, second) for name in FIELDS}) == 6
    assert not any(FIELDS & set(config) for config in configs if config["regularizer"] != "psnr_hvs")


def test_whole_numbers_and_logarithms(counted):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    space, found = Space(("counted",), {"counted": 1.0}), []
    for _ in range(300):
        found.append(space(study.ask()))
    times = [config.get("counted.times", 2) for config in found]
    assert {type(number) for number in times} == {int}
    assert 0.3 < sum(number <= 8 for number in times) / 300 < 0.7, "half of the octaves"
    assert 0.4 < sum(config["counted.small"] < 1e-3 for config in found) / 300 < 0.6, "half of the decades"
    assert not any("counted.plain" in config for config in found)


def test_what_is_fixed_is_not_searched(sweep):
    sweep = dataclasses.replace(sweep, fixed={"psnr_hvs.error": 0.5, "psnr_hvs.edge": 1 / 3})
    for config in psnr_hvs(proposals(sweep, 6)):
        assert config["psnr_hvs.error"] == 0.5
        assert "psnr_hvs.edge" not in config, "its default"
        assert trial_of(sweep, config).penalty().edge == 1 / 3
    space = search_space(sweep, UNITS)
    assert [space[f"psnr_hvs.{name}"] for name in ("error", "structure", "edge")] == [[0.5], [0.0, 1.0], [1 / 3]]
    assert space["psnr_hvs"] == [0.05, 500.0]
    sweep.save()
    assert Sweep.load("s", sweep.storage) == sweep


def test_whole_numbers_that_are_fixed_stay_whole(sweep, counted):
    sweep = dataclasses.replace(sweep, fixed={"counted.times": 3.0})
    assert repr(sweep.fixed_of("counted")) == "{'times': 3}"
    with pytest.raises(UsageError, match=r"counted.times=2.5: give whole numbers from 1 to 64"):
        check_fixed("counted.times", 2.5, ["counted"])


def test_strengths_fix_the_strength_and_an_absolute_weight_everything(sweep):
    strengths = psnr_hvs(proposals(dataclasses.replace(sweep, strengths=(1.0, 10.0)), 6))
    assert [weight_of(config) for config in strengths] == [0.5, 5.0]
    assert all(set(config) >= FIELDS for config in strengths)
    other = dataclasses.replace(
        sweep, name="other", trial=dataclasses.replace(sweep.trial, weight=0.25), fixed={"psnr_hvs.error": 0.5}
    )
    other.local_folder.mkdir()
    for config in psnr_hvs(proposals(other, 6)):
        assert (weight_of(config), settings_of(config)) == (0.25, {"error": 0.5})


@pytest.mark.parametrize(
    ("fixed", "message"),
    [
        ({"psnr_hvs.eror": 0.5}, "no regularizer of this sweep has that setting; did you mean psnr_hvs.error?"),
        ({"tv.error": 0.5}, "no regularizer of this sweep has that setting"),
        ({"psnr_hvs.error": 1.5}, "psnr_hvs.error=1.5: give 0 to 1"),
        ({"psnr_hvs.error": float("nan")}, "psnr_hvs.error=nan: give 0 to 1"),
        ({"psnr_hvs.weight": 1.0}, "weights are set by strengths"),
    ],
)  # fmt: skip
def test_what_cannot_be_fixed_is_one_line(sweep, fixed, message):
    with pytest.raises(UsageError) as refused:
        check_ranges(dataclasses.replace(sweep, regularizers=("l2", "psnr_hvs"), fixed=fixed))
    assert message in str(refused.value)


def test_a_trial_has_them_in_its_digest_and_its_name():
    plain = Trial(data="nowhere", model="resnet8", regularizer="psnr_hvs", weight=0.125)
    trial = dataclasses.replace(plain, penalty_settings=CHANGED)
    assert Trial.from_dict(json.loads(json.dumps(trial.to_dict()))).penalty() == REGULARIZERS["psnr_hvs"](
        weight=0.125, **CHANGED
    )
    assert trial.digest() != plain.digest()
    assert (plain.label, trial.label) == ("psnr_hvs w=0.125", "psnr_hvs w=0.125 error=0.5 edge=0.25")
    with pytest.raises(UsageError, match="psnr_hvs has no 'eror'; it has error"):
        dataclasses.replace(plain, penalty_settings={"eror": 1.0}).penalty()
    with pytest.raises(UsageError, match="error=nan"):
        dataclasses.replace(plain, penalty_settings={"error": float("nan")}).penalty()


def test_a_trial_is_trained_as_it_is_recorded(sweep, monkeypatch):
    asked = []
    monkeypatch.setattr(trainable, "run_trial", lambda trial, **_: asked.append(Trial.from_dict(trial)))
    monkeypatch.setattr(trainable.tune, "get_context", lambda: SimpleNamespace(get_trial_id=lambda: "t"))
    shared = trainable.Shared(trial=sweep.trial.to_dict(), placement=sweep.placement, folder="", switch=None)
    for config in proposals(sweep, 6):
        trainable.train_trial(config, shared)
        started = trial_started(sweep, UNITS, "tune", "t", config)
        assert started.digest == asked[-1].digest()
        assert started.penalty_settings == settings_of(config)
    assert asked[1].penalty() != asked[-1].penalty()


def test_the_unit_is_that_of_what_is_fixed(digits):
    trial = Trial(data=str(digits), model="resnet8", batch_size=8, image_size=32)
    given = (trial, ["psnr_hvs", "l2"], torch.device("cpu"), ShardCache())
    plain = calibrate(*given)
    same = calibrate(*given, settings={"psnr_hvs": {"error": 1 / 3}, "l2": {}})
    other = calibrate(*given, settings={"psnr_hvs": {"error": 1.0, "structure": 0.0, "edge": 0.0}})
    assert same == plain
    assert other["l2"] == plain["l2"]
    assert abs(other["psnr_hvs"] / plain["psnr_hvs"] - 1) > 0.05


def row(key, settings, robust=0.5, **change):
    asked = dict(
        trial_id=key, regularizer="psnr_hvs", weight=0.5, strength=1.0, seed=0, status="finished", accuracy=0.9,
        robust_accuracy=robust, heatmap_ssim=0.0, heatmap_correlation=0.0, checkpoint="c",
        metrics=dict.fromkeys(finalists.FIGURES, robust), penalty_settings=settings,
    )  # fmt: skip
    return Row(**asked | change)


NONE = row("base", {}, 0.1, regularizer="none", weight=0.0, strength=0.0)


def test_finalists_are_told_apart_by_them_and_trained_with_them(sweep):
    sweep, recording = dataclasses.replace(sweep, seeds=2), start_sweep(sweep, {})
    rows = [NONE, row("a", CHANGED)]

    def missing():
        return finalists.missing(sweep, recording.log, finalists.choose_finalists(sweep, recording.log, rows))

    configs = missing()
    assert [settings_of(config) for config in configs] == [{}, CHANGED] * 2
    for number, config in enumerate(configs):
        recording.append(trial_started(sweep, UNITS, "finalists", f"r{number}", {"fixed": config}))
        asked = trial_of(sweep, {"fixed": config})
        recording.append(TrialEnded(trial_id=f"r{number}", epoch=2, digest=asked.digest(), metrics=FIGURES))
    assert missing() == []
    (_, first) = finalists.gather(sweep, recording.log, rows)
    assert [one.penalty_settings for one in first.repetitions] == [CHANGED, CHANGED]
    assert finalists.as_dicts([first])[0]["penalty_settings"] == CHANGED
    rows.append(row("b", CHANGED | {"edge": 0.5}, 0.6))  # the same weight
    configs = missing()
    assert [config["psnr_hvs.edge"] for config in configs] == [0.5, 0.5]


def test_resume_best_trains_on_with_them(sweep, monkeypatch):
    asked = []
    monkeypatch.setattr(train_on, "run_trial", lambda trial, **_: asked.append(trial) or SimpleNamespace(metrics={}))
    train_on._train(TrialResult(**vars(row("a", CHANGED)), sweep=sweep), epochs=4)
    assert Trial.from_dict(asked[0]).penalty() == REGULARIZERS["psnr_hvs"](weight=0.5, **CHANGED)
    (started,) = (trial.started for trial in read_trials(start_sweep(sweep, {}).log).values())
    assert started.penalty_settings == CHANGED
    assert started.digest == Trial.from_dict(asked[0]).digest()


def text(table):
    console = Console(width=80, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


def test_every_table_shows_those_that_are_not_the_default(sweep):
    rows = [NONE, row("a", CHANGED, 0.6), row("b", {})]
    again = [finalists.Finalist(regularizer="psnr_hvs", weight=0.5, strength=1.0, chosen="a", penalty_settings=CHANGED)]
    recording, progress = start_sweep(sweep, {}), Progress(2, 2, Console(width=80, file=io.StringIO()))
    begin(recording, "a", regularizer="psnr_hvs", penalty_settings=CHANGED)
    report(recording, "a", 1, 0.5)
    for event in recording.log:
        progress.take(event)
    for table in (
        ranking.table(rows, rows[1]), finalists.table(again), status.table(read_trials(recording.log).values()),
        progress._table(),
    ):  # fmt: skip
        lines = [line.split() for line in text(table).splitlines()]
        assert sum("psnr_hvs" in line for line in lines) >= 1
        (at,) = (number for number, line in enumerate(lines) if line == ["error=0.5"])
        assert lines[at + 1] == ["edge=0.25"]
        assert "psnr_hvs" in lines[at - 1]
    table = list(csv.DictReader(io.StringIO(ranking.as_csv(rows))))
    assert [(line["trial_id"], line["psnr_hvs.edge"], line["psnr_hvs.error"]) for line in table] == [
        ("a", "0.25", "0.5"), ("b", "", ""), ("base", "", "")
    ]  # fmt: skip
    assert "psnr_hvs.error" not in ranking.as_csv([NONE])
    kept = json.loads(json.dumps(ranking.as_dict(rows, rows[1], 0.5)))["trials"]
    assert [Row(**one).penalty_settings for one in kept] == [CHANGED, {}, {}]


def test_the_report_shows_them(sweep, tmp_path):
    sweep = dataclasses.replace(sweep, seeds=2, fixed={"psnr_hvs.error": 0.5})
    rows = [row("a", CHANGED, 0.6), row("c", {"structure": 0.125}, 0.1, status="failed"), NONE]
    again = [finalists.Finalist(regularizer="psnr_hvs", weight=0.5, strength=1.0, chosen="a", penalty_settings=CHANGED,
                                repetitions=(row("r", CHANGED, 0.9), row("q", CHANGED, 0.9)))]  # fmt: skip
    trials = [TrialResult(**vars(one), sweep=sweep) for one in rows]
    result = SweepResult(sweep=sweep, trials=trials, finalists=finalists.as_dicts(again), units=UNITS)
    page, _ = write_report(result, str(tmp_path / "page.html"))
    assert page.count("psnr_hvs<br>error=0.5<br>edge=0.25</td>") == 2, "the ranking, and the repetitions"
    assert page.count("psnr_hvs<br>structure=0.125</td>") == 2, "the ranking, and what could not be picked"
    assert "| psnr_hvs error=0.5 edge=0.25 |" in description(result)
    shared = dict(settings(result))
    assert shared["fixed"] == "psnr_hvs.error=0.5"
    assert "penalty_settings" not in shared


def test_they_matter_as_parameters_of_the_search():
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    space = Space(("none", "psnr_hvs"), UNITS)
    for number in range(60):
        study.enqueue_trial({"regularizer": ("none", "psnr_hvs")[number % 2]})
        trial = study.ask()
        settings_ = settings_of(space(trial))
        study.tell(trial, 1 - abs(settings_["error"] - 0.8) if settings_ else 0.0)
    found = importances(study)
    assert {"psnr_hvs.error", "psnr_hvs.edge", "weight_psnr_hvs"} <= set(found)
    assert next(iter(found)) == "psnr_hvs.error"
