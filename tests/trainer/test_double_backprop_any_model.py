"""Heatmap and weight gradients equal plain autograd's on whatever a model does."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layers import (
    STEPS,
    WIDTH,
    Step,
    batch_norm_of_torch,
    checkpointed,
    conv,
    drawn,
    norm,
    tripled,
)
from reference import MODES, assert_equal, ours, plain
from torch import nn

from regularizers import REGULARIZERS
from trainer.config import UsageError
from trainer.convolution import FoldedConvolution
from trainer.double_backprop import DoubleBackprop, name_missing_derivative
from trainer.step import RegularizedLoss, set_mode

# What a derivative taken within the model, or a hook that rewrites batch norm's, should see of the statistics under
# `stop` is for no one to say: the reference, in two passes, answers otherwise.
NOT_UNDER_STOP = {
    "gradient inside", "hook backward of norm", "gradient by output", "gradient by output and input",
    "gradient by edge", "late hook on edge", "forward mode",
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "mode"), [(n, m) for n in STEPS for m in MODES if not (m == "stop" and n in NOT_UNDER_STOP)]
)
def test_each_step_equals_plain_autograd(name, mode):
    case = drawn([name])
    truth = plain(*case, mode)
    assert_equal(ours(*case, mode), truth)
    assert_equal(ours(*case, mode, "pytorch"), truth)


def test_checkpointing_equals_plain_autograd():
    model, images, labels = drawn([])
    model.steps.append(Step(checkpointed, conv=conv(), norm=norm()).double())
    for mode in ("frozen", "flow"):  # under `stop` it is refused: recomputed outside, nothing holds the statistics
        assert_equal(ours(model, images, labels, mode), plain(model, images, labels, mode))


def test_a_first_operation_in_place_changes_no_image():
    case = drawn(["conv"], stem=lambda: nn.ReLU(inplace=True))
    before = case[1].clone()
    assert_equal(ours(*case, "frozen"), plain(*case, "frozen"))
    assert torch.equal(case[1], before)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(
    names=st.lists(st.sampled_from(sorted(STEPS.keys() - NOT_UNDER_STOP)), min_size=2, max_size=5),
    mode=st.sampled_from(MODES),
    seed=st.integers(0, 99),
)
def test_any_mixture_equals_plain_autograd(names, mode, seed):
    case = drawn(names, seed)
    try:
        truth = plain(*case, mode)
    except (RuntimeError, ValueError):  # what plain autograd refuses: a kernel larger than what is left of the image …
        with pytest.raises((RuntimeError, ValueError)):
            ours(*case, mode)
        return
    assert_equal(ours(*case, mode), truth, 1e-8)


def test_a_hook_and_a_second_derivative_by_the_batch_norms_weight_are_refused():
    def step(x, conv, norm):
        z = norm(conv(x))
        z.grad_fn.next_functions[3][0].register_prehook(tripled)
        (inside,) = torch.autograd.grad(z.tanh().sum(), norm.weight, create_graph=True)
        return z * (1 + inside.reshape(-1, 1, 1))

    model, images, labels = drawn([])
    model.steps.append(Step(step, conv=conv(), norm=norm()).double())
    with pytest.raises(UsageError, match="give double_backprop pytorch"):
        ours(model, images, labels, "frozen")


def folded(result):
    return type(result.grad_fn).__name__ == "FoldedConvolutionBackward"


def test_folding_takes_place_where_nothing_speaks_against_it(monkeypatch):
    """Else the tests above would compare PyTorch with itself."""
    torch.manual_seed(0)
    layers, seen = nn.Sequential(conv(), norm()).eval(), []
    matters = FoldedConvolution._output_matters
    monkeypatch.setattr(FoldedConvolution, "_output_matters", lambda ctx: seen.append(matters(ctx)) or seen[-1])
    images = torch.randn(2, WIDTH, 8, 8, requires_grad=True)
    with DoubleBackprop("frozen"):
        result = layers(images)
    assert folded(result)
    (heatmap,) = torch.autograd.grad(result.sin().sum(), images, create_graph=True)
    (heatmap.square().sum() + result.square().sum()).backward()
    assert len(seen) >= 2
    assert not any(seen), "the gradient took the way through the convolution's output, which nobody holds"


def test_a_batch_of_gradients_equals_one_after_the_other():
    def jacobian(batched, double_backprop):
        model, images, labels = drawn(["between nothing", "after relu in place"])
        set_mode(model, "frozen")
        loss = RegularizedLoss(model, REGULARIZERS["l2"](), double_backprop=double_backprop)
        forward = loss.forward_pass(images, labels)
        directions = torch.eye(3).double()[:, None].expand(3, len(images), 3)
        if batched:
            (found,) = torch.autograd.grad(
                forward.logits, forward.images, directions, create_graph=True, is_grads_batched=True
            )
        else:
            found = torch.stack(
                [torch.autograd.grad(forward.logits, forward.images, d, create_graph=True)[0] for d in directions]
            )
        penalty = found.square().sum() + 0.01 * forward.logits.square().sum()
        gradients = torch.autograd.grad(penalty, list(model.parameters()))
        return [found.detach(), *gradients]

    truth = jacobian(False, "pytorch")
    for batched in (True, False):
        for found, expected in zip(jacobian(batched, "fast"), truth, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_batch_norm_called_as_torchs_own_equals_plain_autograd(mode):
    found, (twin, images, labels) = drawn([])[0], drawn([])
    torch.manual_seed(2)
    twin.steps.append(Step(lambda x, conv, norm: norm(conv(x)), conv=conv(), norm=norm()).double())
    found.steps.append(Step(batch_norm_of_torch, **copy.deepcopy(dict(twin.steps[0].layers))).double())
    assert_equal(ours(found, images, labels, mode), plain(twin, images, labels, mode))


def test_forward_mode_works_under_stop():
    case = drawn(["forward mode"])
    torch.testing.assert_close(ours(*case, "stop").logits, plain(*case, "flow").logits)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = conv(), norm()

    def forward(self, x):
        return self.norm(self.conv(x))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_batch_norm_in_a_script_has_the_modes_or_is_refused(mode):
    (model, images, labels), (twin, _, _) = drawn([]), drawn([])
    twin.steps.append(Block().double())
    model.steps.append(torch.jit.script(copy.deepcopy(twin.steps[0])))
    if mode != "stop":
        assert_equal(ours(model, images, labels, mode), plain(twin, images, labels, mode))
        return
    with pytest.raises(UsageError, match="^the model has a batch norm .* batch_norm stop .* frozen or flow"):
        ours(model, images, labels, mode)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_trace_that_normalizes_by_the_batch_is_not_taken_for_frozen():
    model, images, labels = drawn([])
    model.steps.append(torch.jit.trace(Block().double().train(), torch.randn(2, WIDTH, 5, 5).double()))
    with pytest.raises(UsageError, match="^the model has a batch norm .* batch_norm frozen"):
        ours(model, images, labels, "frozen")


def test_a_compiled_module_is_refused_by_name():
    model, images, labels = drawn([])
    inner = nn.Sequential(conv(), nn.Tanh()).double()
    model.steps.append(torch.compile(inner, backend="aot_eager"))
    with pytest.raises(UsageError, match="'mine' uses torch.compile, which cannot"), name_missing_derivative("mine"):
        ours(model, images, labels, "frozen")


@pytest.mark.parametrize("inplace", [True, False])
def test_hard_sigmoid_is_the_same_function_with_a_second_derivative(inplace):
    model, images, labels = drawn(["conv"])
    truth, written_out = copy.deepcopy(model), lambda x: (3 * x + 3).clamp(0, 6) / 6
    model.steps.append(Step(lambda x: F.hardsigmoid(3 * x, inplace)))
    truth.steps.append(Step(written_out))
    assert_equal(ours(model, images, labels, "frozen"), plain(truth, images, labels, "frozen"))
    with pytest.raises(UsageError, match="'mine' uses hardsigmoid, which cannot"), name_missing_derivative("mine"):
        ours(model, images, labels, "frozen", "pytorch")
