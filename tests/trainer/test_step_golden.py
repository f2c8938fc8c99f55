"""Loss and second-order weight gradients of a whole network against the original TensorFlow code (tests/golden/).

The golden layout is NHWC, convolution kernels HWIO; weights are compared as one flat vector in that layout.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from regularizers import REGULARIZERS, Forward
from trainer.data import Batch
from trainer.step import RegularizedLoss, set_mode, train_step

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "network.npz")
NAMES = [str(name) for name in GOLDEN["reg_names"]]
TOTALS = [str(name) for name in GOLDEN["total_regs"]]
VARIANTS = {"stop": "bn_stop", "flow": "bn_flow_exact"}
WEIGHTS = ("conv1", "gamma1", "beta1", "conv2", "gamma2", "beta2", "dense_w", "dense_b")
DECAYED = (0, 3, 6, 7)  # the original decays everything but batch norm


def golden(key):
    return torch.from_numpy(np.asarray(GOLDEN[key])).double()


class Network(nn.Module):
    def __init__(self, norm=nn.BatchNorm2d):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, bias=False), norm(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 16, 3, stride=2, bias=False), norm(16)
        self.dense = nn.Linear(16, 10)
        self.double()
        with torch.no_grad():
            for parameter, name in zip(self.ordered(), WEIGHTS, strict=True):
                parameter.copy_(as_torch(golden(f"w/{name}")))

    def ordered(self):
        return [self.conv1.weight, self.bn1.weight, self.bn1.bias, self.conv2.weight, self.bn2.weight, self.bn2.bias,
                self.dense.weight, self.dense.bias]  # fmt: skip

    def forward(self, images):
        x = nn.functional.softplus(self.bn1(self.conv1(images)))
        return self.dense(torch.relu(self.bn2(self.conv2(x))).mean(dim=(2, 3)))


class MomentsOfTensorFlow(nn.BatchNorm2d):
    """Batch norm as `tf.nn.moments` computes it: the mean inside the variance carries no gradient."""

    def forward(self, x):
        mean = x.mean(dim=(0, 2, 3), keepdim=True)
        variance = (x - mean.detach()).square().mean(dim=(0, 2, 3), keepdim=True)
        shape = (1, -1, 1, 1)
        return (x - mean) * torch.rsqrt(variance + self.eps) * self.weight.reshape(shape) + self.bias.reshape(shape)


def as_torch(weight):
    """HWIO → OIHW and (in, out) → (out, in)."""
    return weight.permute(3, 2, 0, 1) if weight.ndim == 4 else weight.T if weight.ndim == 2 else weight


def flat(weights):
    """OIHW → HWIO and (out, in) → (in, out), in the golden order."""
    back = [w.permute(2, 3, 1, 0) if w.ndim == 4 else w.T if w.ndim == 2 else w for w in weights]
    return torch.cat([w.reshape(-1) for w in back])


def batch():
    return golden("x").permute(0, 3, 1, 2).contiguous(), torch.from_numpy(GOLDEN["labels"]).long()


class GoldenProjection(REGULARIZERS["spectreg"]):
    """spectreg with the numbers the original drew."""

    def score(self, forward):
        return (forward.logits * golden("proj")).sum(dim=1)


def regularizer(name, weight=1.0):
    return (GoldenProjection if name == "spectreg" else REGULARIZERS[name])(weight=weight)


def gradients(loss, model):
    found = torch.autograd.grad(loss, model.ordered(), allow_unused=True)
    return flat([torch.zeros_like(w) if g is None else g for g, w in zip(found, model.ordered(), strict=True)])


def assert_equal(actual, expected, rtol=1e-10):
    """Relative to the size of the vector: entries that are differences of large numbers carry their rounding."""
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=rtol * float(expected.abs().max()))


@pytest.mark.parametrize("mode", VARIANTS)
@pytest.mark.parametrize("name", NAMES)
def test_penalty_and_its_weight_gradient(name, mode):
    model = Network()
    loss = RegularizedLoss(model, regularizer(name), batch_norm=mode)
    penalty = loss.regularizer.penalty(loss.forward_pass(*batch())).mean()
    row, variant = NAMES.index(name), VARIANTS[mode]
    assert_equal(penalty.detach(), golden(f"{variant}/f64/loss")[row])
    assert_equal(gradients(penalty, model), golden(f"{variant}/f64/weight_grads")[row])


@pytest.mark.parametrize("mode", VARIANTS)
@pytest.mark.parametrize("name", TOTALS)
def test_total_loss_and_its_weight_gradient(name, mode):
    """Label smoothing 0.1, penalty weight 0.5, weight decay 1e-4 on ½‖w‖²."""
    model = Network()
    loss = RegularizedLoss(model, regularizer(name, 0.5), label_smoothing=0.1, batch_norm=mode)
    decay = 1e-4 / 2 * sum(model.ordered()[i].square().sum() for i in DECAYED)
    result = loss(*batch())
    row, variant = TOTALS.index(name), VARIANTS[mode]
    assert_equal(result.cross_entropy, golden(f"{variant}/f64/ce_smoothed"))
    assert_equal((result.loss + decay).detach(), golden(f"{variant}/f64/total_loss")[row])
    assert_equal(gradients(result.loss + decay, model), golden(f"{variant}/f64/total_weight_grads")[row])


def test_heatmap_with_statistics_held_constant():
    loss = RegularizedLoss(Network(), regularizer("l2"), batch_norm="stop")
    forward = loss.forward_pass(*batch())
    heatmap = forward.heatmap(forward.class_logits).detach().permute(0, 2, 3, 1)
    assert_equal(heatmap, golden("bn_stop/f64/heatmap"))


def test_three_steps_with_nesterov_momentum():
    """TensorFlow's mean without gradient inside the variance; it holds momentum 0.9 as a float32."""
    model = Network(MomentsOfTensorFlow)
    decayed = [model.ordered()[i] for i in DECAYED]
    plain = [w for i, w in enumerate(model.ordered()) if i not in DECAYED]
    groups = [{"params": decayed, "weight_decay": 1e-4}, {"params": plain}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)
    loss = RegularizedLoss(model, regularizer("mse", 0.5), label_smoothing=0.1, batch_norm="flow")
    for expected in golden("bn_flow/f64/sgd_weights"):
        train_step(loss, Batch(*batch()), optimizer)
        assert_equal(flat([w.detach() for w in model.ordered()]), expected, rtol=1e-7)


@pytest.mark.parametrize("mode", VARIANTS)
def test_running_statistics_are_updated(mode):
    """Momentum 0.1 from 0 and 1; the original takes the population variance, PyTorch the unbiased one."""
    model = Network()
    set_mode(model, mode)
    RegularizedLoss(model, regularizer("l2"), batch_norm=mode)(*batch())
    for norm, index, count in ((model.bn1, 1, 6 * 18 * 18), (model.bn2, 2, 6 * 8 * 8)):
        mean, variance = (golden(f"bn_flow/f64/moving_after_1/{kind}{index}") for kind in ("mean", "var"))
        assert_equal(norm.running_mean, mean, rtol=1e-7)
        assert_equal((norm.running_var - 0.9) * (count - 1) / count, variance - 0.9, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_frozen_statistics_leave_examples_apart(name):
    """A batch gives what its examples give one by one through a plain rebuild with fixed statistics."""
    model = Network()
    set_mode(model, "flow")
    model(batch()[0])  # running statistics that are not 0 and 1
    set_mode(model, "frozen")
    loss = RegularizedLoss(model, regularizer(name))
    images, labels = batch()
    penalties = loss.regularizer.penalty(loss.forward_pass(images, labels))
    rebuilt, total = [], 0.0
    for i in range(len(labels)):
        image = images[i : i + 1].clone().requires_grad_()
        x = nn.functional.softplus(fixed(model.bn1, model.conv1(image)))
        logits = model.dense(torch.relu(fixed(model.bn2, model.conv2(x))).mean(dim=(2, 3)))
        own = regularizer(name)
        if name == "spectreg":
            (heatmap,) = torch.autograd.grad((logits * golden("proj")[i]).sum(), image, create_graph=True)
            rebuilt.append(own.distance(heatmap, image.detach()))
        else:
            rebuilt.append(own.penalty(Forward(image, labels[i : i + 1], logits)))
        total = total + rebuilt[-1].sum() / len(labels)
    assert_equal(penalties.detach(), torch.cat(rebuilt).detach())
    assert_equal(gradients(penalties.mean(), model), gradients(total, model))


def fixed(norm, x):
    shape = (1, -1, 1, 1)
    centered = x - norm.running_mean.reshape(shape)
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return centered * scale.reshape(shape) + norm.bias.reshape(shape)
