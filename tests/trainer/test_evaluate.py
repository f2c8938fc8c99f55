"""The metrics of a split: against independent libraries, for any number of workers, and from the command line."""

import copy
import dataclasses
import io
import itertools
import json
import os
import shutil
import socket
import tarfile

import mlflow
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from PIL import Image
from torch import nn

from trainer.config import Trial, UsageError
from trainer.data import _EvalStream, eval_loader, spread
from trainer.evaluate import __main__ as evaluate_command
from trainer.evaluate import gallery
from trainer.evaluate import plan as plans
from trainer.evaluate.evaluation import Means, accuracy, evaluate
from trainer.models import build_model
from trainer.normalization import IMAGENET
from trainer.preprocess import Transform
from trainer.shards import Sample, encode_jpeg, read_shards, write_shards

CPU = torch.device("cpu")


@pytest.fixture
def trial(digits):
    return Trial(data=str(digits), model="resnet8", batch_size=50, robust_images=60, pgd_eps=0.2 / 255, pgd_steps=3)


def whole_split(digits, split):
    loader = eval_loader(read_shards(digits, split), Transform(None, train=False), IMAGENET, rank=0, world_size=1,
                         batch_size=999)  # fmt: skip
    (batch,) = loader.epoch()
    return batch


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_accuracy_and_calibration_equal_torchmetrics(classes):
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

    generator = torch.Generator().manual_seed(classes)
    logits = 3 * torch.randn(500, classes, generator=generator)
    labels = torch.where(torch.rand(500, generator=generator) < 0.5, logits.argmax(1),
                         torch.randint(classes, (500,), generator=generator))  # fmt: skip
    means = Means()
    for part in torch.arange(500).split(64):
        means.add(accuracy(logits[part], labels[part]))
    values = means.over_workers(CPU)
    bins = [values.pop(f"bin{number}") for number in range(15)]
    options = {"num_classes": classes, "average": "micro"}
    expected = {
        "accuracy": multiclass_accuracy(logits, labels, **options),
        "top5_accuracy": multiclass_accuracy(logits, labels, top_k=min(5, classes), **options),
        "loss": nn.functional.cross_entropy(logits.double(), labels),
    }
    assert values == {name: pytest.approx(float(value), abs=1e-7) for name, value in expected.items()}
    error = multiclass_calibration_error(logits.double(), labels, classes, n_bins=15)
    assert sum(map(abs, bins)) == pytest.approx(float(error), abs=1e-6)


def test_the_report_is_over_the_whole_split_and_its_subset(trial, solved, digits):
    from torchmetrics.functional.classification import multiclass_calibration_error

    values = evaluate(solved, read_shards(digits, "val"), trial, plans.closing(trial), CPU)
    batch = whole_split(digits, "val")
    logits = solved(batch.images)
    hits = (logits.argmax(1) == batch.labels).double()
    assert values["val/examples"] == 359
    assert values["val/attacked_examples"] == 60
    assert values["val/broken_examples"] == 0
    assert values["val/accuracy"] == pytest.approx(float(hits.mean()), abs=1e-12)
    assert values["val/loss"] == pytest.approx(float(nn.functional.cross_entropy(logits, batch.labels)), rel=1e-5)
    assert values["val/subset_accuracy"] == pytest.approx(float(hits[list(spread(359, 60))].mean()), abs=1e-12)
    assert values["val/robust_accuracy"] == values["val/accuracy_pgd_linf_eps0.2_step0.166667x3"]
    assert 0 < values["val/robust_accuracy"] < values["val/subset_accuracy"]  # 0.43 and 0.83
    error = multiclass_calibration_error(logits.double(), batch.labels, 10, n_bins=15)
    assert values["val/calibration_error"] == pytest.approx(float(error), abs=1e-6)


def everything(trial):
    plan = plans.full(trial, attacked=trial.robust_images, eps=(0.2,), l2_eps=(2.0,), steps=2)
    return dataclasses.replace(plan, attacks=(*plan.attacks[:-1], dataclasses.replace(plan.attacks[-1], queries=3)))


def worker(rank, size, port, trial, weights, path):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
    model = build_model(trial.model, 10)
    model.load_state_dict(torch.load(weights, weights_only=True))
    values = evaluate(model, read_shards(trial.data, "test"), trial, everything(trial), CPU)
    with open(f"{path}.{rank}", "w") as stream:
        json.dump(values, stream)
    dist.destroy_process_group()


@pytest.mark.parametrize(("size", "loader_workers"), [(2, 0), pytest.param(5, 0, marks=pytest.mark.slow),
                                                      pytest.param(2, 2, marks=pytest.mark.slow)])  # fmt: skip
def test_workers_change_no_digit(trial, solved, digits, tmp_path, size, loader_workers):
    trial = dataclasses.replace(trial, robust_images=20, batch_size=16)
    torch.save(solved.state_dict(), tmp_path / "weights.pt")
    torch.set_num_threads(1)
    alone = evaluate(solved, read_shards(digits, "test"), trial, everything(trial), CPU)
    assert len(alone) > 90
    assert all(np.isfinite(value) for value in alone.values())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = dataclasses.replace(trial, loader_workers=loader_workers)
    mp.spawn(worker, (size, port, shared, tmp_path / "weights.pt", tmp_path / "values"), nprocs=size)
    for rank in range(size):
        assert json.loads((tmp_path / f"values.{rank}").read_text()) == alone


@pytest.fixture
def last_batch_broken(tmp_path):
    """Shards of 1,026 images of which the last, a batch of its own for batches of 41, cannot be decoded."""
    rng = np.random.default_rng(0)
    pictures = [encode_jpeg(Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))) for _ in range(10)]
    samples = [Sample(f"{n:04d}", pictures[n % 10] if n < 1025 else b"cut off", n % 10) for n in range(1026)]
    write_shards(samples, tmp_path / "broken", "test", [str(n) for n in range(10)], "test")
    return tmp_path / "broken"


def light_worker(rank, size, port, trial, path):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
    torch.manual_seed(0)
    values = evaluate(build_model("resnet8", 10), read_shards(trial.data, "test"), trial, plans.closing(trial), CPU)
    with open(f"{path}.{rank}", "w") as stream:
        json.dump(values, stream)
    dist.destroy_process_group()


def test_a_batch_of_broken_images_alone_is_left_out_on_one_worker_and_two(trial, last_batch_broken, tmp_path):
    torch.set_num_threads(1)
    trial = dataclasses.replace(trial, data=str(last_batch_broken), batch_size=41, robust_images=1026, pgd_steps=1)
    torch.manual_seed(0)
    alone = evaluate(build_model("resnet8", 10), read_shards(trial.data, "test"), trial, plans.closing(trial), CPU)
    assert (alone["test/examples"], alone["test/attacked_examples"], alone["test/broken_examples"]) == (1025, 1025, 1)
    assert all(np.isfinite(value) for value in alone.values())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(light_worker, (2, port, trial, tmp_path / "values"), nprocs=2)
    for rank in range(2):
        assert json.loads((tmp_path / f"values.{rank}").read_text()) == alone


def test_broken_images_are_counted_over_all_workers(last_batch_broken, trial, monkeypatch):
    """However few each reader sees of them."""
    shards = read_shards(last_batch_broken, "test")
    monkeypatch.setattr("trainer.data.MAX_BROKEN", 0.9 / 1026)
    monkeypatch.setattr(_EvalStream, "allowed", 10**6)
    with pytest.raises(UsageError, match=r"1 of 1026 test images cannot be decoded, and at most 0.1% of the split may"):
        evaluate(build_model("resnet8", 10), shards, trial, dataclasses.replace(plans.closing(trial), attacked=1), CPU)


class InFloat64(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = copy.deepcopy(model).double()

    def forward(self, images):
        return self.model(images.double())


def test_what_is_drawn_for_an_example_does_not_depend_on_its_batch(trial, solved, digits):
    trial = dataclasses.replace(trial, robust_images=20)
    plan = dataclasses.replace(everything(trial), examples=1)
    exact = InFloat64(solved)  # in float32 another batch rounds otherwise, which may tip an example
    small, large = (
        evaluate(exact, read_shards(digits, "test"), dataclasses.replace(trial, batch_size=size), plan, CPU)
        for size in (7, 20)
    )
    accuracies = [name for name in small if "accuracy" in name]
    assert len(accuracies) > 70
    assert {name: small[name] for name in accuracies} == {name: large[name] for name in accuracies}


def test_the_order_of_batches_changes_no_digit():
    values = [torch.rand(7, dtype=torch.float64) * 10.0**power for power in range(-8, 9)]
    results = []
    for order in (values, values[::-1], values[5:] + values[:5]):
        means = Means()
        for batch in order:
            means.add({"x": batch})
        results.append(means.over_workers(CPU))
    assert results[0] == results[1] == results[2]


def test_evaluation_leaves_the_model_as_it_was(trial, solved, digits):
    model = build_model("resnet8", 10)
    model.load_state_dict(solved.state_dict())
    model.train()
    model.bn1.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate(model, read_shards(digits, "test"), trial, plans.closing(trial), CPU)
    assert model.training
    assert not model.bn1.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_evaluation_uses_the_precision_of_training(trial, solved, digits):
    plan = plans.closing(trial)
    exact, half = (
        evaluate(solved, read_shards(digits, "test"), dataclasses.replace(trial, precision=precision), plan, CPU)
        for precision in ("float32", "bfloat16")
    )
    assert exact["test/loss"] != half["test/loss"]
    assert half["test/loss"] == pytest.approx(exact["test/loss"], rel=0.1)


@pytest.mark.parametrize(("images", "examples", "attacked"), [
    (100, 32, 32),  # too short an epoch: the floor
    (10_000, 1500, 214), (2560, 768, 36), (1_000_000, 1500, 256),
])  # fmt: skip
def test_a_light_evaluation_costs_a_fifth_of_a_plain_epoch(trial, images, examples, attacked):
    trial = dataclasses.replace(trial, images_per_epoch=images, robust_images=256, pgd_steps=8)
    plan = plans.light(trial, total=1500)
    assert (plan.examples, plan.attacked) == (examples, attacked)
    if images > 1000:
        passes = plan.examples + plan.attacked * (plan.attacks[0].passes + 3)
        assert passes <= 0.2 * 3 * images


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        try:
            status = evaluate_command.main([str(argument) for argument in arguments])
        except SystemExit as stopped:  # of the parser
            status = stopped.code
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


LIGHT = ("--evaluate", "light", "--images", 20, "--gallery", 3)


def test_any_checkpoint_gives_the_same_report(command, checkpoints, solved, digits, trial, tmp_path, monkeypatch):
    folder, published = checkpoints
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.set_tracking_uri(None)
    with mlflow.start_run():
        mlflow.pytorch.log_model(solved, name="model", registered_model_name="digits", serialization_format="pickle")
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
    command, checkpoints, solved, digits, reversed_digits, tmp_path, monkeypatch
):
    folder, _ = checkpoints
    state = torch.load(folder / "state.pt", weights_only=True)
    torch.save(state | {"classes": [str(digit) for digit in range(10)]}, folder / "state.pt")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.set_tracking_uri(None)
    with mlflow.start_run():
        mlflow.pytorch.log_model(
            solved, name="model", registered_model_name="digits", serialization_format="pickle",
            metadata={"classes": [str(digit) for digit in range(10)]},
        )  # fmt: skip
    for data, said in ((digits, 0), (reversed_digits, 2)):
        where = ("--split", "val", "--batch-size", 50, "--out", f"report-{said}")
        status, _, err = command("--checkpoint", folder, "models:/digits/1", "--data", data, *LIGHT, *where)
        assert status == 0, err
        assert err.count("in another order: its outputs are taken by their names") == said
    whole, other = (json.loads((tmp_path / f"report-{n}/report.json").read_text())["models"] for n in (0, 2))
    accuracies = [model["metrics"]["val/accuracy"] for model in whole + other]
    assert accuracies[0] > 0.5
    assert accuracies == [accuracies[0]] * 4


def test_other_classes_than_a_registered_model_has_are_refused(command, solved, digits, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.set_tracking_uri(None)
    with mlflow.start_run():
        mlflow.pytorch.log_model(
            solved, name="model", registered_model_name="letters", serialization_format="pickle",
            metadata={"classes": list("abcdefghij")},
        )  # fmt: skip
    capsys.readouterr()  # what MLflow said
    status, _, err = command("--checkpoint", "models:/letters/1", "--data", digits, *LIGHT)
    assert (status, err.count("\n")) == (2, 1)
    assert "its classes are not the data's: 0, 1, 2 and 7 more it has not, where it has a, b, c and 7 more" in err


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
    monkeypatch.setattr(evaluate_command, "BETWEEN_LINES", 0.0)
    folder, _ = checkpoints
    status, out, err = command("--checkpoint", *[folder] * 5, "--data", digits, *LIGHT)
    assert status == 0, err
    assert err.splitlines()[-1] == "l2 w=0.25: robustness and heatmaps, 100 %", "how far it is, where no bar can say it"
    table = [line for line in out.splitlines() if line.startswith("|")]
    assert table[0].split("|")[1].strip() == "model"
    assert [line.split("|")[1].strip() for line in table[2:]] == ["l2 w=0.25"] * 5


@pytest.mark.parametrize(("arguments", "words"), [
    (("--checkpoint", "nowhere.pt", "--model", "resnet8"), "nowhere.pt: no such file"),
    (("--checkpoint", "published.pth"), "needs --model"),
    (("--checkpoint", "published.pth", "--model", "resnet20"), "does not fit the model"),
    (("--checkpoint", "published.pth", "--model", "resnet8", "--images", "many"), "--images takes a number or all"),
    (("--checkpoint", "published.pth", "--model", "resnet8", "--images", "0"), "--images 0"),
    (("--checkpoint", "published.pth", "--model", "resnet8", "--eps", "x"), "--eps and --l2-eps take numbers"),
    (("--checkpoint", "published.pth", "--model", "resnet8", "--steps", "0"), "steps=0"),
    (("--checkpoint", "published.pth", "--model", "resnet8", "--queries", "-1"), "--queries -1"),
    (("--checkpoint", "published.pth", "--model", "resnet8", "--device", "cuda:99"), "--device cuda:99"),
    (("--checkpoint", "models:/nothing/1"), "models:/nothing/1: MLflow at"),
])  # fmt: skip
def test_what_cannot_be_evaluated_is_said_in_one_line(command, checkpoints, digits, tmp_path, monkeypatch, arguments,
                                                      words):  # fmt: skip
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.set_tracking_uri(None)
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


def test_a_gallery_shows_zero_as_white_and_signs_as_colours():
    heatmaps = torch.zeros(1, 3, 8, 8)
    heatmaps[:, :, :4] = 0.1
    heatmaps[:, :, 6:] = -0.2
    assert gallery.scaled(heatmaps)[0, :, 0].tolist() == pytest.approx([0.5] * 4 + [0, 0] + [-1, -1])
    png = gallery.draw_gallery(torch.full((1, 3, 8, 8), 0.5), heatmaps, [""], "")
    picture = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    middle = picture[:, int(0.43 * picture.shape[1])]  # down through the heatmap, the second of three columns
    signs = ["red" if r > b + 50 else "blue" if b > r + 50 else "white" for r, _, b in middle.tolist()]
    assert [sign for sign, _ in itertools.groupby(signs)][:5] == ["white", "red", "white", "blue", "white"]
