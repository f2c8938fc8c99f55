"""The metrics of a split: of all its examples, and the same for any number of workers."""

import copy
import dataclasses
import json
import socket

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from PIL import Image
from torch import nn
from whole import whole_split

from trainer.config import UsageError
from trainer.data import spread
from trainer.evaluate import plan as plans
from trainer.evaluate.measure import evaluate, measure
from trainer.models import build_model
from trainer.readers import EvalReader
from trainer.shards import Sample, encode_jpeg, read_shards, write_shards

CPU = torch.device("cpu")


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


def test_who_withstood_is_kept_image_by_image(trial, solved, digits):
    plan = dataclasses.replace(plans.closing(trial), examples=1)
    found = measure(solved, read_shards(digits, "val"), trial, plan, CPU)
    assert len(found.withstood) == 60
    assert found.withstood.count("1") / 60 == found.metrics["val/robust_accuracy"]
    batch = whole_split(digits, "val")
    wrong = solved(batch.images[list(spread(359, 60))]).argmax(1) != batch.labels[list(spread(359, 60))]
    assert 0 < wrong.sum() < 30
    assert all(found.withstood[place] == "0" for place in wrong.nonzero()[:, 0]), "in the order of the split"


def everything(trial):
    plan = plans.full(trial, attacked=trial.robust_images, eps=(0.2,), l2_eps=(2.0,), steps=2)
    return dataclasses.replace(plan, attacks=(*plan.attacks[:-1], dataclasses.replace(plan.attacks[-1], queries=3)))


def worker(rank, size, port, trial, weights, path):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
    model = build_model(trial.model, 10)
    model.load_state_dict(torch.load(weights, weights_only=True))
    found = measure(model, read_shards(trial.data, "test"), trial, everything(trial), CPU)
    values = found.metrics | {"withstood": found.withstood}
    with open(f"{path}.{rank}", "w") as stream:
        json.dump(values, stream)
    dist.destroy_process_group()


@pytest.mark.parametrize(("size", "loader_workers"), [(2, 0), pytest.param(5, 0, marks=pytest.mark.slow),
                                                      pytest.param(2, 2, marks=pytest.mark.slow)])  # fmt: skip
def test_workers_change_no_digit(trial, solved, digits, tmp_path, size, loader_workers):
    trial = dataclasses.replace(trial, robust_images=20, batch_size=16)
    torch.save(solved.state_dict(), tmp_path / "weights.pt")
    torch.set_num_threads(1)
    found = measure(solved, read_shards(digits, "test"), trial, everything(trial), CPU)
    assert len(found.metrics) > 90
    assert all(np.isfinite(value) for value in found.metrics.values())
    assert len(found.withstood) == 20
    alone = found.metrics | {"withstood": found.withstood}
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
    monkeypatch.setattr("trainer.broken_images.MAX_BROKEN", 0.9 / 1026)
    monkeypatch.setattr(EvalReader, "too_many", lambda self, broken, read: "")
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
