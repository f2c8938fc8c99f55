"""What a sweep left, as Python has it: table, pick, front and each trial by its number."""

import dataclasses
import io
import json

import pytest
import torch
from rich.console import Console

from sweeps import Sweep, SweepResult, TrialResult
from sweeps.finalists import Finalist, as_dicts, choose
from sweeps.ranking import Row, as_dict, pick
from sweeps.summary import print_result, print_trained_on
from sweeps.train_on import check
from trainer.config import Trial, UsageError
from trainer.models import build_model


def row(number, trial_id, name, accuracy, robust, status="finished", checkpoint=""):
    return Row(
        trial_id=trial_id, number=number, regularizer=name, weight=2.0, strength=1.0, seed=0, status=status,
        accuracy=accuracy, robust_accuracy=robust, heatmap_ssim=0.0, heatmap_correlation=0.0, checkpoint=checkpoint,
        metrics={"val/accuracy": accuracy, "test/accuracy": accuracy - 0.01},
    )  # fmt: skip


@pytest.fixture
def ended(tmp_path, digits):
    """A sweep of five trials; of the three finished ones that left a checkpoint only the pick's is whole."""
    trial = Trial(data=str(digits), model="resnet8")
    sweep = Sweep(name="s", storage=str(tmp_path), trial=trial, regularizers=("l2", "tv"), max_accuracy_drop=0.05)
    rows = [
        row(0, "abc1", "none", 0.90, 0.1), row(1, "abd2", "l2", 0.88, 0.4), row(2, "7777", "tv", 0.70, 0.6),
        row(3, "xyz3", "l2", 0.87, 0.3), row(7, "fail", "tv", 0.0, 0.0, "failed"),
    ]  # fmt: skip
    for number in (1, 2, 3):
        folder = tmp_path / "s/trials" / rows[number].trial_id
        (folder / "epoch_0002").mkdir(parents=True)
        torch.manual_seed(number)
        state = {"model": build_model("resnet8", 10).state_dict(), "trial": trial.to_dict()}
        torch.save(state, folder / "epoch_0002/state.pt")
        rows[number] = dataclasses.replace(rows[number], checkpoint=str(folder / "epoch_0002"))
        if number != 1:
            (folder / "weights_only.json").write_text('{"done": true}')
    sweep.save()
    keep(sweep, rows)
    (tmp_path / "s/calibration.json").write_text('{"l2": 2.0, "tv": 2.0}')
    return sweep


def keep(sweep, rows, finalists=()):
    result = as_dict(rows, pick(rows, sweep.max_accuracy_drop), sweep.max_accuracy_drop)
    with open(f"{sweep.folder}/result.json", "w") as file:
        json.dump(result | {"finalists": as_dicts(finalists)}, file)


def test_the_table_has_every_trial_by_its_number_best_first(ended):
    table = SweepResult.load("s", ended.storage).table()
    assert list(table.index) == [2, 1, 3, 0, 7]
    assert (table.index.name, table.loc[7, "status"], table.loc[1, "trial_id"]) == ("number", "failed", "abd2")
    assert list(table.index[table["pick"]]) == [1]
    assert set(table.index[table["front"]]) == {0, 1, 2}
    assert table.loc[2, "robust_accuracy"] == 0.6
    assert table.loc[3, "test/accuracy"] == pytest.approx(0.86)


def test_a_baseline_that_wins_is_not_offered_for_more_training(ended):
    result = ended.result()
    trials = [dataclasses.replace(one, metrics=one.metrics | {"test/robust_accuracy": 0.1}) for one in result.trials]
    for drop, picked in ((0.05, "l2"), (0.0, "none")):
        sweep = dataclasses.replace(ended, max_accuracy_drop=drop, seeds=0)
        console = Console(file=io.StringIO(), width=200)
        print_result(dataclasses.replace(result, sweep=sweep, trials=trials), console)
        said = console.file.getvalue()
        assert f"Pick: {picked}, trial" in said
        assert ("Train the pick further" in said) == (picked != "none")


def test_a_result_that_a_disk_spoiled_is_one_line(ended, tmp_path):
    (tmp_path / "s/result.json").write_text('{"trials": [')
    with pytest.raises(UsageError, match="s/result.json: is not valid JSON .*--resume.* writes it again$"):
        ended.result()


def test_pick_and_front(ended):
    result = ended.result()
    assert (result.pick.number, result.pick.regularizer) == (1, "l2")
    assert [one.number for one in result.front] == [0, 1, 2], "the most accurate first; trial 3 is beaten"
    without = dataclasses.replace(result, trials=[one for one in result.trials if one.regularizer != "none"])
    assert without.pick is None
    with pytest.raises(UsageError, match="trial=None: sweep s has no pick; name a trial"):
        without.best()


def test_a_trial_by_number_or_id(ended):
    result = ended.result()
    for which in (1, "1", "#01", "#1", "abd2", "abd"):
        assert result.trial(which).trial_id == "abd2", which
    assert result.trial(7).trial_id == "fail", "a number goes before the beginning of an id"
    assert result.trial("77").trial_id == "7777"
    for wrong in ("ab", "q", 5, "", "#"):
        with pytest.raises(UsageError, match="sweep s has #00, #01, #02, #03, #07$"):
            result.trial(wrong)


def test_a_trials_model_is_loaded_ready_to_use(ended):
    result = ended.result()
    model = result.trial(2).load_model()
    torch.manual_seed(2)
    expected = build_model("resnet8", 10).eval()
    images = torch.randn(2, 3, 32, 32)
    assert not model.training
    assert torch.equal(model(images), expected(images))
    with pytest.raises(UsageError, match="trial=#07: it failed and left no checkpoint"):
        result.trial(7).load_model()


def test_a_result_is_complete_if_nothing_is_missing_and_nothing_failed(ended):
    assert not ended.result().complete, "one failed, one is missing"
    rows = [row(number, f"t{number}", name, 0.9, 0.1) for number, name in enumerate(("none", "l2", "tv"))]
    keep(ended, rows)
    assert ended.result().complete
    keep(ended, rows[:2])
    assert not ended.result().complete, "fewer trials than asked for"
    twice = dataclasses.replace(ended, seeds=2)
    twice.save()
    finalists = [
        Finalist(regularizer=one.regularizer, weight=1.0, strength=1.0, chosen=one.trial_id, repetitions=(one,))
        for one in choose(rows, 0.05)
    ]
    metrics = {f"{split}/{name}": 0.5 for split in ("val", "test") for name in ("accuracy", "robust_accuracy")}
    finalists = [
        dataclasses.replace(one, repetitions=tuple(dataclasses.replace(r, metrics=metrics) for r in one.repetitions))
        for one in finalists
    ]
    keep(twice, rows, finalists)
    assert (twice.result().complete, twice.result().short) == (False, ["none", "l2", "tv"])


def test_what_cannot_be_trained_on_is_refused(ended):
    result = ended.result()
    check(result.pick, 1)
    with pytest.raises(UsageError, match="epochs=0: give a whole number of at least 1"):
        check(result.pick, 0)
    with pytest.raises(UsageError, match="epochs=1.5: give a whole number of at least 1"):
        check(result.pick, 1.5)
    with pytest.raises(UsageError, match="trial=#07: it failed and left no checkpoint"):
        check(result.trial(7), 1)


def test_what_of_only_the_weights_are_left_can_be_started_from(ended):
    with pytest.raises(UsageError) as refused:
        check(ended.result().trial("xyz"), 1)
    data = ended.trial.data
    remedy = f"--data {data} --model resnet8 --checkpoint {ended.trials_folder}/xyz3/epoch_0002"
    assert (
        f"as keep best says, and training further needs the optimizer's state; start a sweep from them with {remedy}"
        in (str(refused.value))
    )


def test_more_epochs_are_compared_with_what_was(ended, capsys):
    from rich.console import Console

    before = ended.result().pick
    after = dataclasses.replace(before, metrics={"val/accuracy": 0.95}, checkpoint="there")
    print_trained_on(before, after, Console())
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "on val: accuracy 88.0 → 95.0 %, robust nan → nan %"
    assert out[2] == "checkpoint: there"


def test_a_sweep_that_has_not_ended_has_no_result(tmp_path, digits):
    sweep = Sweep(name="other", storage=str(tmp_path), trial=Trial(data=str(digits), model="resnet8"))
    with pytest.raises(UsageError, match="no sweep 'other'"):
        sweep.result()
    sweep.save()
    with pytest.raises(UsageError, match="sweep other has no result yet"):
        sweep.result()


def test_a_notebook_shows_the_table(ended):
    assert "abd2" in ended.result()._repr_html_()
    assert isinstance(ended.result().pick, TrialResult)
    assert len(repr(ended.result().pick)) < 500
