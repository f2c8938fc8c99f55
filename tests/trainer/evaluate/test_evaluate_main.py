"""The command line of an evaluation: any checkpoint, one report, errors in one line."""

import dataclasses
import json
import os
import shutil
import tarfile

import mlflow
import pytest
import torch
from PIL import Image
from whole import whole_split

from trainer.evaluate import __main__ as evaluate_command
from trainer.evaluate import run as evaluate_run
from trainer.shards import Sample, read_shards, write_shards


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        status = evaluate_command.main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def checkpoints(trial, solved, tmp_path):
    """A trial's checkpoint folder, a state dict and a registered model of the same weights."""
    folder = tmp_path / "epoch_0001"
    folder.mkdir()
    settings = dataclasses.replace(trial, regularizer="l2", weight=0.25).to_dict() | {"setting_of_a_later_version": 1}
    torch.save({"model": solved.state_dict(), "trial": settings}, folder / "state.pt")
    torch.save({"state_dict": solved.state_dict()}, tmp_path / "published.pth")
    return folder, tmp_path / "published.pth"


@pytest.fixture
def register(solved, monkeypatch, tmp_path):
    """Register the model with MLflow, in a registry of its own."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.set_tracking_uri(None)

    def _register(name, **metadata):
        options = {"registered_model_name": name, "serialization_format": "pickle", "metadata": metadata}
        with mlflow.start_run():
            mlflow.pytorch.log_model(solved, name="model", **options)

    return _register


LIGHT = ("--evaluate", "light", "--images", 20, "--gallery", 3)


def test_any_checkpoint_gives_the_same_report(command, checkpoints, register, solved, digits, tmp_path):
    folder, published = checkpoints
    register("digits")
    options = ("--data", digits, *LIGHT, "--model", "resnet8", "--batch-size", 50)
    status, out, err = command("--checkpoint", folder, published, "models:/digits/1", *options, "--out", "report")
    assert status == 0, err
    report = json.loads((tmp_path / "report/report.json").read_text())
    first, *others = [
        {name: value for name, value in model["metrics"].items() if "pgd" not in name and "robust" not in name}
        for model in report["models"]
    ]
    assert [model["label"] for model in report["models"]] == ["l2 w=0.25", "published", "models:/digits/1"]
    batch = whole_split(digits, "test")
    assert first["test/accuracy"] == float((solved(batch.images).argmax(1) == batch.labels).double().mean())
    assert first["test/attacked_examples"] == 20
    assert others == [first, first]
    assert "| accuracy " in out
    assert f"{100 * first['test/accuracy']:.1f} |" in out
    for model in report["models"]:
        picture = Image.open(tmp_path / "report" / model["gallery"])
        assert picture.size[0] > 500
    same = [Image.open(tmp_path / "report" / model["gallery"]) for model in report["models"]]
    assert [p.size for p in same] == [same[0].size] * 3


@pytest.fixture
def reversed_digits(digits, tmp_path):
    """The same images, their classes in the opposite order."""
    folder = tmp_path / "reversed"
    for split in ("train", "val", "test"):
        samples = []
        for path in read_shards(digits, split).paths:
            with tarfile.open(path) as archive:
                found = {member.name: archive.extractfile(member).read() for member in archive}
            keys = [name[:-4] for name in found if name.endswith(".jpg")]
            samples += [Sample(key, found[f"{key}.jpg"], 9 - int(found[f"{key}.cls"])) for key in keys]
        write_shards(samples, folder, split, read_shards(digits, split).classes[::-1], "digits")
    return folder


def test_other_orders_of_the_classes_change_no_accuracy(
    command, checkpoints, register, digits, reversed_digits, tmp_path
):
    folder, _ = checkpoints
    state = torch.load(folder / "state.pt", weights_only=True)
    torch.save(state | {"classes": [str(digit) for digit in range(10)]}, folder / "state.pt")
    register("digits", classes=[str(digit) for digit in range(10)])
    for data, said in ((digits, 0), (reversed_digits, 2)):
        where = ("--split", "val", "--batch-size", 50, "--out", f"report-{said}")
        status, _, err = command("--checkpoint", folder, "models:/digits/1", "--data", data, *LIGHT, *where)
        assert status == 0, err
        assert err.count("in another order: its outputs are taken by their names") == said
    whole, other = (json.loads((tmp_path / f"report-{n}/report.json").read_text())["models"] for n in (0, 2))
    accuracies = [model["metrics"]["val/accuracy"] for model in whole + other]
    assert accuracies[0] > 0.5
    assert accuracies == [accuracies[0]] * 4


def test_other_classes_than_a_registered_model_has_are_refused(command, register, digits, capsys):
    register("letters", classes=list("abcdefghij"))
    capsys.readouterr()  # what MLflow said
    status, _, err = command("--checkpoint", "models:/letters/1", "--data", digits, *LIGHT)
    assert (status, err.count("\n")) == (2, 1)
    assert "its classes are not the data's: it lacks 0, 1, 2 and 7 more and has a, b, c and 7 more instead" in err


def test_of_a_trials_folder_the_last_epoch_is_taken_and_of_a_sweeps_none(command, checkpoints, digits, tmp_path):
    folder, _ = checkpoints
    trial = tmp_path / "s/trials/t1"
    shutil.copytree(folder, trial / "epoch_0001")
    shutil.copytree(folder, trial / "epoch_0002")
    (trial / "epoch_0003").mkdir()  # being written
    status, _, err = command("--checkpoint", trial, "--data", digits, *LIGHT, "--out", "report")
    assert status == 0, err
    assert f"{trial} is the folder of a trial; its last epoch is taken, epoch_0002" in err
    model = json.loads((tmp_path / "report/report.json").read_text())["models"][0]
    assert model["trial"]["checkpoint"] == str(trial / "epoch_0002/state.pt")

    def refused():
        status, _, err = command("--checkpoint", tmp_path / "s", "--data", digits, *LIGHT)
        assert (status, err.count("\n")) == (2, 1)
        return err

    assert f"is the folder of a sweep; its trials are in {tmp_path}/s/trials: t1; give one" in refused()
    result = {"pick": "t1", "trials": [{"trial_id": "t1", "checkpoint": f"{trial}/epoch_0001"}]}
    (tmp_path / "s/result.json").write_text(json.dumps(result))
    assert f"is the folder of a sweep; its pick is {trial}/epoch_0001; give one" in refused()


def test_many_checkpoints_are_set_side_by_side(command, checkpoints, digits, monkeypatch):
    monkeypatch.setattr(evaluate_run, "BETWEEN_LINES", 0.0)
    folder, _ = checkpoints
    copies = [folder.with_name(f"copy_{number}") for number in range(5)]
    for copy in copies:
        copy.symlink_to(folder)
    status, out, err = command("--checkpoint", *copies, "--data", digits, *LIGHT)
    assert status == 0, err
    assert err.splitlines()[-1] == "l2 w=0.25: robustness and heatmaps, 100 %", "how far it is, where no bar can say it"
    table = [line for line in out.splitlines() if line.startswith("|")]
    assert table[0].split("|")[1].strip() == "model"
    assert [line.split("|")[1].strip() for line in table[2:]] == ["l2 w=0.25"] * 5


@pytest.mark.parametrize(("arguments", "words"), [
    (("--checkpoint", "nowhere.pt", "--model", "resnet8"), "nowhere.pt: no such file"),
    (("--checkpoint", "published.pth"), "needs --model"),
    (("--checkpoint", "published.pth", "--model", "resnet20"), "does not fit the model"),
    (("--checkpoint", "published.pth", "--model", "resnet8", "--images", "many"), "--images many: give a whole"),
    (("--checkpoint", "published.pth", "--model", "resnet8", "--images", "0"), "--images 0"),
    (("--checkpoint", "published.pth", "--model", "resnet8", "--eps", "x"), "--eps: give numbers with commas"),
    (("--checkpoint", "published.pth", "--model", "resnet8", "--steps", "0"), "--steps 0: give a whole number"),
    (("--checkpoint", "published.pth", "--model", "resnet8", "--queries", "-1"), "--queries -1"),
    (("--checkpoint", "published.pth", "--model", "resnet8", "--device", "cuda:99"), "--device cuda:99"),
    (("--checkpoint", "models:/nothing/1"), "models:/nothing/1: MLflow at"),
])  # fmt: skip
def test_what_cannot_be_evaluated_is_said_in_one_line(command, checkpoints, register, digits, arguments, words):
    status, _, err = command(*arguments, "--data", digits, "--out", "report")
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith("error: ")
    assert words in err
    assert not os.path.exists("report")


def test_data_without_class_names_are_said_to_lack_them(command, checkpoints, digits, tmp_path):
    (tmp_path / "bare").mkdir()
    for path in digits.glob("*.tar"):
        (tmp_path / "bare" / path.name).symlink_to(path)
    status, _, err = command("--checkpoint", "published.pth", "--model", "resnet8", "--data", tmp_path / "bare")
    assert (status, err.count("\n")) == (2, 1)
    assert "neither meta.json nor classes.json there names the classes" in err


@pytest.mark.parametrize(
    ("trial", "words"),
    [({"number": 3}, "needs --model"), ({"seed": 3}, "needs --model"), ({"model": 3}, "needs --model"),
     ({"model": "resnet8", "epochs": "ten"}, "its trial is not one of this project"), ([3], "needs --model")],
)  # fmt: skip
def test_a_trial_of_another_program_is_no_trial_of_ours(command, solved, digits, tmp_path, trial, words):
    torch.save({"model": solved.state_dict(), "trial": trial}, tmp_path / "state.pt")
    status, _, err = command("--checkpoint", "state.pt", "--data", digits, *LIGHT)
    assert (status, err.count("\n")) == (2, 1)
    assert words in err
