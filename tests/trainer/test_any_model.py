"""Heatmap and weight gradients equal plain autograd's on whatever a model does."""

import copy

import numpy
import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import MODES, assert_equal, ours, plain
from torch import nn
from torch.utils.checkpoint import checkpoint

from regularizers import REGULARIZERS
from trainer.config import UsageError
from trainer.convolution import FoldedConvolution
from trainer.double_backprop import DoubleBackprop, name_missing_derivative
from trainer.step import RegularizedLoss, set_mode

WIDTH = 4


class Step(nn.Module):
    """What a function does with a feature map `(b, 4, h, w)`, and the layers that it uses."""

    def __init__(self, function, **layers):
        super().__init__()
        self.function, self.layers = function, nn.ModuleDict(layers)

    def forward(self, x):
        return self.function(x, **self.layers)


def conv(kernel=3, padding=1, **options):
    return nn.Conv2d(WIDTH, WIDTH, kernel, padding=padding, **options)


def norm(**options):
    layer = nn.BatchNorm2d(WIDTH, **options)
    if layer.running_mean is not None:
        layer.running_mean.uniform_(-1, 1)
        layer.running_var.uniform_(0.5, 2)
    if layer.affine:
        nn.init.uniform_(layer.weight, 0.5, 1.5)
        nn.init.uniform_(layer.bias)
    return layer


def between(function, *, bias=True):
    """Something between a convolution and its batch norm."""
    return lambda: Step(lambda x, conv, norm: norm(function(conv(x), x)), conv=conv(bias=bias), norm=norm())


def after(function):
    """Something after a convolution and its batch norm."""
    return lambda: Step(lambda x, conv, norm: function(norm(conv(x)), x), conv=conv(bias=False), norm=norm())


def hooked(name, hook):
    """A convolution and its batch norm, one of them with a hook."""

    def make():
        step = Step(lambda x, conv, norm: norm(conv(x)), conv=conv(), norm=norm())
        getattr(step.layers[name.partition(".")[0]], name.partition(".")[2])(hook)
        return step

    return make


def assigned(y, x):
    y[:, :2] = x[:, :2]
    return y


def added(y, x):
    y += x
    return y


def scaled_gradient(y, x):
    y.register_hook(lambda gradient: 3 * gradient)
    return y


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y):
        ctx.mark_dirty(y)
        return y.mul_(2)

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


def extension(y, x):
    """As a function written in C++, which torch calls unseen."""
    with torch._C.DisableTorchFunction():
        return y.mul_(2)


def changed_data(y, x):
    y.data.mul_(2)
    return y


def input_changed_later(x, conv, norm):
    x = x.clone()
    with torch.no_grad():
        y = conv(x)
    x.mul_(2)
    return norm(y) + x


def conv_without_gradient(x, conv, norm):
    with torch.no_grad():
        y = conv(x)
    return norm(y) + x


def norm_without_gradient(x, conv, norm):
    y = conv(x)
    with torch.no_grad():
        z = norm(y)
    return y * z


def used_twice(x, conv, norm):
    y = conv(x)
    return norm(y) + y.tanh()


def shared(x, conv, norm):
    return norm(conv(norm(conv(x)).tanh()))


def crossed(x, conv, other, norm):
    y, z = conv(x), other(x)
    return norm(z) + norm(y)


def conditional_weight(x, route):
    b, c, h, w = x.shape
    weight = (0.2 * route(x.mean((2, 3)))).tanh().reshape(b * c, c, 3, 3)
    return F.conv2d(x.reshape(1, b * c, h, w), weight, padding=1, groups=b).reshape(b, c, h, w)


def conditional_weight_and_norm(x, route, norm):
    return norm(conditional_weight(x, route))


def conditional_bias(x, conv, route):
    return F.conv2d(x, conv.weight, route(x.mean((0, 2, 3))), padding=1)


def conditional_norm(x, conv, route):
    scale, shift = route(x.mean((0, 2, 3))).tanh().chunk(2)
    y = conv(x)
    return F.batch_norm(y, torch.zeros_like(scale), torch.ones_like(scale), 1 + scale, shift)


def image_as_weight(x):
    return F.conv2d(x[:1], x[:, :, :3, :3].tanh(), padding=1).expand(len(x), -1, -1, -1)[:, :WIDTH].contiguous()


def checkpointed(x, conv, norm):
    return checkpoint(lambda x: norm(conv(x)).tanh(), x, use_reentrant=False)


def vectorized(x, conv):
    return torch.func.vmap(lambda one: F.conv2d(one[None], conv.weight, padding=1)[0])(x)


def gradient_inside(x, conv, norm):
    y = norm(conv(x))
    (inside,) = torch.autograd.grad(y.tanh().sum(), x, create_graph=True)
    return y + inside


def weight_gradient_inside(x, conv):
    (inside,) = torch.autograd.grad(conv(x).tanh().sum(), conv.weight, create_graph=True)
    return F.conv2d(x, conv.weight - 0.01 * inside, padding=1)


def late(observe):
    """Someone looks at the convolution's output once batch norm has been applied to it."""

    def step(x, conv, norm):
        y = conv(x)
        z = norm(y)
        return z if (changed := observe(y, z, x)) is None else changed

    return lambda: Step(step, conv=conv(), norm=norm())


def tripled(gradients):
    return tuple(None if gradient is None else 3 * gradient for gradient in gradients)


def only_looks(y, z, x):
    torch.autograd.graph.register_multi_grad_hook((y,), lambda gradients: None)


def gradient_by_edge(x, conv, norm):
    y = conv(x)
    z = norm(y)
    edge = torch.autograd.graph.get_gradient_edge(y)
    del y  # from here on the node alone is held
    (inside,) = torch.autograd.grad(z.tanh().sum(), [edge], create_graph=True)
    return z + inside


def late_edge_of_the_result(y, z, x):
    """Found on the way back from the result: the node of the convolution is the one that knows no other."""
    nodes, conv = [z.grad_fn], None
    while nodes:
        node = nodes.pop()
        conv = node if "Convolution" in node.name() and "Folded" not in node.name() else conv
        nodes += [following for following, _ in node.next_functions if following is not None and conv is None]
    conv.register_prehook(tripled)


def gradient_by_output(y, z, x):
    (inside,) = torch.autograd.grad(z.tanh().sum(), y, create_graph=True)
    return z + inside


def gradient_by_both(y, z, x):
    inside, before = torch.autograd.grad(z.tanh().sum(), [y, x], create_graph=True)
    return z + inside + before


def gradient_by_scale(x, conv, norm):
    y = conv(x)
    z = norm(y)
    (inside,) = torch.autograd.grad(z.tanh().sum(), norm.weight, create_graph=True)
    return z * (1 + 0.01 * inside.reshape(-1, 1, 1))


def hook_on_inputs_node(module, inputs, z):
    inputs[0].grad_fn.register_prehook(tripled)


def numbers_of_numpy(x, conv):
    two, one = numpy.int64(2), numpy.int64(1)
    return F.conv2d(x, conv.weight, conv.bias, (two, two), (one, one), (one, one))


def numbers_in_tensors(x, conv):
    return F.conv2d(x, conv.weight, conv.bias, torch.tensor(2), torch.tensor(1))


def forward_mode(x, conv, norm):
    with forward_ad.dual_level():
        moved = norm(conv(forward_ad.make_dual(x, x.cos())))
        value, tangent = forward_ad.unpack_dual(moved)
        return value + tangent


def empty_batch(x, conv, norm):
    return conv(x) + norm(conv(x[:0])).sum()


def batch_norm_of_torch(x, conv, norm):
    statistics = norm.running_mean, norm.running_var
    return torch.batch_norm(conv(x), norm.weight, norm.bias, *statistics, norm.training, 0.1, norm.eps, False)


def single_numbers(x, conv):
    return F.conv2d(x, conv.weight, conv.bias, stride=(1,), padding=(1,), dilation=(1,))


def unbatched(x, conv):
    return torch.stack([conv(one) for one in x])


STEPS = {
    "conv": lambda: conv(),
    "conv stride": lambda: conv(stride=2),
    "conv even": lambda: conv(2, padding=1, bias=False),
    "conv same": lambda: conv(padding="same", dilation=2),
    "conv depthwise": lambda: conv(groups=WIDTH),
    "conv uneven": lambda: conv((1, 3), padding=(0, 1), stride=(2, 1)),
    "conv reflect": lambda: conv(padding_mode="reflect"),
    "conv weight norm": lambda: nn.utils.parametrizations.weight_norm(conv()),
    "conv single numbers": lambda: Step(single_numbers, conv=conv()),
    "conv unbatched": lambda: Step(unbatched, conv=conv()),
    "conv transposed": lambda: nn.ConvTranspose2d(WIDTH, WIDTH, 3, padding=1),
    "norm": norm,
    "norm without statistics": lambda: norm(track_running_stats=False),
    "norm not affine": lambda: norm(affine=False),
    "group norm": lambda: nn.GroupNorm(2, WIDTH),
    "instance norm": lambda: nn.InstanceNorm2d(WIDTH, affine=True),
    "relu": lambda: nn.ReLU(),
    "relu in place": lambda: nn.ReLU(inplace=True),
    "silu in place": lambda: nn.SiLU(inplace=True),
    "hardswish in place": lambda: nn.Hardswish(inplace=True),
    "pool": lambda: nn.MaxPool2d(2, ceil_mode=True),
    "dropout": lambda: nn.Dropout2d(0.3),
    "between nothing": between(lambda y, x: y),
    "between relu in place": between(lambda y, x: F.relu_(y)),
    "between silu in place": between(lambda y, x: F.silu(y, inplace=True)),
    "between leaky in place": between(lambda y, x: F.leaky_relu_(y), bias=False),
    "between mul in place": between(lambda y, x: y.mul_(2)),
    "between function of its own in place": between(lambda y, x: Doubled.apply(y)),
    "between extension in place": between(extension),
    "between data mul": between(changed_data),
    "between added": between(added),
    "between assigned": between(assigned),
    "between scaled gradient": between(scaled_gradient),
    "between detached": between(lambda y, x: y.detach_() + x),
    "between view in place": between(lambda y, x: y.view(-1).mul_(2).view_as(y)),
    "between split in place": between(lambda y, x: (y.chunk(2, 1)[0].data.mul_(2), y)[1]),
    "after relu in place": after(lambda z, x: F.relu_(z)),
    "after silu in place": after(lambda z, x: F.silu(z, inplace=True)),
    "after added": after(added),
    "after assigned": after(assigned),
    "after scaled gradient": after(scaled_gradient),
    "hook replaces output": hooked("conv.register_forward_hook", lambda module, inputs, y: y * 2),
    "hook changes output": hooked("conv.register_forward_hook", lambda module, inputs, y: y.mul_(2)),
    "hook changes input": hooked("norm.register_forward_pre_hook", lambda module, inputs: (inputs[0].sin(),)),
    "hook on gradient": hooked("conv.register_forward_hook", lambda module, inputs, y: scaled_gradient(y, None)),
    "hook backward": hooked("conv.register_full_backward_hook", lambda module, into, out: (3 * into[0],)),
    "hook backward of norm": hooked("norm.register_full_backward_hook", lambda module, into, out: (into[0] / 2,)),
    "input changed later": lambda: Step(input_changed_later, conv=conv(), norm=norm()),
    "conv without gradient": lambda: Step(conv_without_gradient, conv=conv(), norm=norm()),
    "norm without gradient": lambda: Step(norm_without_gradient, conv=conv(), norm=norm()),
    "used twice": lambda: Step(used_twice, conv=conv(), norm=norm()),
    "shared": lambda: Step(shared, conv=conv(), norm=norm()),
    "crossed": lambda: Step(crossed, conv=conv(), other=conv(), norm=norm()),
    "conditional weight": lambda: Step(conditional_weight, route=nn.Linear(WIDTH, WIDTH * WIDTH * 9)),
    "conditional weight and norm": lambda: Step(
        conditional_weight_and_norm, route=nn.Linear(WIDTH, WIDTH * WIDTH * 9), norm=norm()
    ),
    "conditional bias": lambda: Step(conditional_bias, conv=conv(), route=nn.Linear(WIDTH, WIDTH)),
    "conditional norm": lambda: Step(conditional_norm, conv=conv(), route=nn.Linear(WIDTH, 2 * WIDTH)),
    "image as weight": lambda: Step(image_as_weight),
    "late hook": late(lambda y, z, x: scaled_gradient(y, x)[:0].sum() + z),
    "late hook that only looks": late(only_looks),
    "late hook on node": late(lambda y, z, x: y.grad_fn.register_prehook(tripled) and None),
    "late hook behind node": late(lambda y, z, x: y.grad_fn.register_hook(lambda into, _: tripled(into)) and None),
    "late hook on edge": late(late_edge_of_the_result),
    "late hook of norm on node": hooked("norm.register_forward_hook", hook_on_inputs_node),
    "gradient by output": late(gradient_by_output),
    "gradient by output and input": late(gradient_by_both),
    "gradient by edge": lambda: Step(gradient_by_edge, conv=conv(), norm=norm()),
    "gradient by scale": lambda: Step(gradient_by_scale, conv=conv(), norm=norm()),
    "numbers of numpy": lambda: Step(numbers_of_numpy, conv=conv()),
    "numbers in tensors": lambda: Step(numbers_in_tensors, conv=conv()),
    "forward mode": lambda: Step(forward_mode, conv=conv(), norm=norm()),
    "empty batch": lambda: Step(empty_batch, conv=conv(), norm=norm()),
    "vectorized": lambda: Step(vectorized, conv=conv()),
    "gradient inside": lambda: Step(gradient_inside, conv=conv(), norm=norm()),
    "weight gradient inside": lambda: Step(weight_gradient_inside, conv=conv()),
}  # fmt: skip


class Net(nn.Module):
    """Steps between a stem that makes four channels and a head for three classes."""

    def __init__(self, names, stem=nn.Identity):
        super().__init__()
        self.stem = nn.Sequential(stem(), nn.Conv2d(3, WIDTH, 3, stride=2, padding=1), nn.Softplus())
        self.steps = nn.ModuleList(STEPS[name]() for name in names)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, images):
        x = self.stem(images)
        for step in self.steps:
            x = step(x)
        return self.head(x.tanh().mean((2, 3)))


def drawn(names, seed=0, **options):
    torch.manual_seed(seed)
    model = Net(names, **options).double()
    return model, torch.randn(4, 3, 13, 12, dtype=torch.float64), torch.tensor([0, 1, 2, 1])


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
