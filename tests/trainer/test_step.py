"""Training is right under DDP: real gloo processes against one process on the same global batch."""

import gc
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from regularizers import REGULARIZERS, Regularizer
from trainer.config import UsageError
from trainer.data import Batch
from trainer.distributed import data_parallel
from trainer.resnet import CifarResNet
from trainer.step import CompiledLoss, RegularizedLoss, set_mode, train_step

ONE_OF_EACH_KIND = ["none", "datagrad", "l2", "tv_abs", "mse", "ssim_unfiltered", "psnr_hvs_m"]


def global_batch():
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(4, 3, 16, 16, generator=generator, dtype=torch.float64)
    return Batch(images, torch.randint(4, (4,), generator=generator))


def step_twice(name, batch):
    """Weights after two steps with momentum and the losses seen."""
    torch.manual_seed(0)
    model = CifarResNet(8, 4, "softplus").double()
    set_mode(model, "frozen")
    loss = data_parallel(RegularizedLoss(model, REGULARIZERS[name](weight=0.3)), torch.device("cpu"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    losses = [train_step(loss, batch, optimizer, clip_norm=1.0).loss.detach() for _ in range(2)]
    return torch.cat([p.detach().flatten() for p in model.parameters()]), torch.stack(losses)


def worker(rank, port, path):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    batch = global_batch()
    results = {}
    for name in ONE_OF_EACH_KIND:
        weights, losses = step_twice(name, Batch(batch.images[rank::2], batch.labels[rank::2]))
        dist.all_reduce(losses)
        results[name] = weights, losses / 2
    if rank == 0:
        torch.save(results, path)
    gc.collect()  # DDP's cycles hold the group; left to the interpreter's end, gloo's thread aborts the process
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def of_two_workers(tmp_path_factory):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    path = tmp_path_factory.mktemp("workers") / "result.pt"
    mp.spawn(worker, (port, path), nprocs=2)
    return torch.load(path)


@pytest.mark.parametrize("name", ONE_OF_EACH_KIND)
def test_two_workers_take_the_step_of_one(name, of_two_workers):
    weights, losses = of_two_workers[name]
    expected_weights, expected_losses = step_twice(name, global_batch())
    torch.testing.assert_close(losses, expected_losses, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(weights, expected_weights, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ONE_OF_EACH_KIND)
def test_same_seed_gives_the_same_losses(name):
    first, second = step_twice(name, global_batch()), step_twice(name, global_batch())
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_weight_multiplies_the_penalty():
    batch, losses = global_batch(), []
    for weight in (0.0, 1.0, 2.0):
        torch.manual_seed(0)
        model = CifarResNet(8, 4, "softplus").double()
        set_mode(model, "frozen")
        loss = RegularizedLoss(model, REGULARIZERS["l2"](weight=weight))
        result = train_step(loss, batch, torch.optim.SGD(model.parameters(), 0.1))
        losses.append(result.loss)
        torch.testing.assert_close(result.loss, result.cross_entropy + weight * result.penalty)
    assert losses[0] < losses[1] < losses[2]


def test_baseline_takes_no_input_gradient(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("an input gradient was taken")

    monkeypatch.setattr(torch.autograd, "grad", refuse)
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(4)).double()
    model(global_batch().images)
    loss = RegularizedLoss(model, REGULARIZERS["none"]())
    train_step(loss, global_batch(), torch.optim.SGD(model.parameters(), 0.1))


@pytest.mark.parametrize("name", ["none", "l2", "ssim_unfiltered"])
def test_a_bad_image_is_left_out_counted_and_changes_no_bit(name):
    batch, seen = global_batch(), []
    for bad in (0.0, float("nan"), float("inf")):
        images = batch.images.clone()
        images[1] = 0.0
        images[1, 0, 0, 0] = bad
        torch.manual_seed(0)
        model = CifarResNet(8, 4, "softplus").double()
        set_mode(model, "frozen")
        loss = RegularizedLoss(model, REGULARIZERS[name](weight=0.3))
        result = loss(images, batch.labels)
        gradient = torch.autograd.grad(result.loss, list(model.parameters()))
        seen.append((result, torch.cat([g.flatten() for g in gradient])))
    (clean, _), (first, gradient), (second, other) = seen
    assert [int(result.nonfinite) for result, _ in seen] == [0, 1, 1]
    assert torch.equal(first.loss, second.loss)
    assert torch.equal(gradient, other)
    rest = RegularizedLoss(model, REGULARIZERS[name](weight=0.3))(batch.images[[0, 2, 3]], batch.labels[[0, 2, 3]])
    torch.testing.assert_close(first.loss, rest.loss * 3 / 4)
    assert not torch.equal(first.loss, clean.loss)


class Detached(Regularizer):
    name = "detached"

    def formula(self, heatmap, images):
        return heatmap.detach().square().mean(dim=(1, 2, 3))


class OwnPenalty(Regularizer):
    name = "own"

    def penalty(self, forward):
        return forward.heatmap(forward.class_logits).square().mean()


class Infinite(Regularizer):
    name = "infinite"

    def formula(self, heatmap, images):
        return heatmap.square().mean(dim=(1, 2, 3)) / 0


class InfinitePenalty(Regularizer):
    name = "infinite"

    def penalty(self, forward):
        return forward.losses / 0


class NanScore(Regularizer):
    name = "infinite"

    def score(self, forward):
        return forward.class_logits * float("nan")

    def formula(self, heatmap, images):
        return heatmap.square().mean(dim=(1, 2, 3))


@pytest.mark.parametrize("regularizer", [Infinite, InfinitePenalty, NanScore])
def test_a_penalty_that_is_never_finite_takes_no_step(regularizer):
    model = CifarResNet(8, 4, "softplus").double()
    set_mode(model, "frozen")
    before = [parameter.clone() for parameter in model.parameters()]
    loss = RegularizedLoss(model, regularizer())
    with pytest.raises(UsageError, match="^regularizer 'infinite': .* for every example"):
        train_step(loss, global_batch(), torch.optim.SGD(model.parameters(), 0.1))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("kind", [RegularizedLoss, CompiledLoss])
def test_a_wrong_regularizer_is_a_usage_error_that_names_it(kind):
    model = CifarResNet(8, 4, "softplus").double()
    set_mode(model, "frozen")
    batch = global_batch()
    with pytest.raises(UsageError, match="regularizer 'detached': formula returned values without a graph"):
        kind(model, Detached())(batch.images, batch.labels)
    with pytest.raises(UsageError, match="regularizer 'own'"):  # a scalar; compiled, it would not be called at all
        kind(model, OwnPenalty())(batch.images, batch.labels)
