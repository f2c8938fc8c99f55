"""Published weights fit whole, or are refused and change nothing."""

import pytest
import torch
from weight_files import assert_same, prefixed

from trainer.config import UsageError
from trainer.models import build_model
from trainer.weights import fit_weights


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("layer2.0.conv1.weight"), "lacks layer2.0.conv1.weight. Check model"),
        (lambda s: s.pop("bn1.running_var"), "lacks bn1.running_var"),
        (lambda s: s.update({"layer1.0.se.weight": torch.zeros(3)}), "has unknown layer1.0.se.weight"),
        (lambda s: s.update({"conv1.weight": torch.zeros(16, 1, 3, 3)}), r"\(16, 1, 3, 3\), the model's is \(16, 3,"),
        (lambda s: s.update({"conv1.weight": s["conv1.weight"].to(torch.int8)}), "is int8, the model's is float32"),
        (lambda s: s.update({"conv1.weight": s["conv1.weight"].to_sparse()}), "conv1.weight is a tensor of sparse_coo"),
        (lambda s: s.update({"linear.bias": s["linear.bias"].to_sparse()}), "linear.bias is a tensor of sparse_coo"),
        (lambda s: s.update({"bn1.weight": s["bn1.weight"].to("meta")}), "bn1.weight has no values"),
        (lambda s: s["conv1.weight"][0, 0, 0].fill_(float("nan")), "conv1.weight holds NaN"),
        (lambda s: s["bn1.running_var"][:1].fill_(float("inf")), "bn1.running_var holds infinity"),
        (lambda s: s.pop("linear.bias"), r"its last layer is another one \(lacks linear.bias\)"),
        (lambda s: s.update({"linear.scale": torch.ones(1)}), "has unknown linear.scale"),
        (lambda s: s.clear(), "it holds no tensors under names"),
        (
            lambda s: [s.update({f"{key}_": s.pop(key)}) for key in list(s)],
            "such as conv1.weight, but module.conv1.weight_,",
        ),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(source, change, words):
    state = {name: value.clone() for name, value in source.state_dict().items()}
    change(state)
    model = build_model("resnet8", 10)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UsageError, match=words) as refused:
        fit_weights(model, {"state_dict": prefixed("module.", state)}, "file.pth")
    assert "\n" not in str(refused.value)
    assert_same(model, before)


def test_a_deeper_network_is_not_cut_down_to_the_model():
    with pytest.raises(UsageError, match="has unknown layer1.1.bn1.bias.* and .* more"):
        fit_weights(build_model("resnet8", 10), build_model("resnet20", 10).state_dict(), "file.pth")


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_the_models(source, kind):
    state = {
        name: value.to(kind) if value.is_floating_point() else value for name, value in source.state_dict().items()
    }
    model = build_model("resnet8", 10)
    fit_weights(model, state, "file.pth")
    assert_same(model, {name: value.to(source.state_dict()[name].dtype) for name, value in state.items()})


def test_counters_and_a_profilers_figures_do_not_matter(source):
    state = {name: value for name, value in source.state_dict().items() if "num_batches" not in name}
    model = build_model("resnet8", 10)
    fit_weights(model, state | {"layer1.0.conv1.total_ops": torch.zeros(1)}, "file.pth")
    assert torch.equal(model.conv1.weight, source.conv1.weight)
