"""The weights of a model are found in whatever wraps them, and of several copies the right one is taken."""

import collections

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from weight_files import assert_same, noisy, prefixed

from trainer.config import UsageError
from trainer.models import build_model
from trainer.weights import fit_weights

PREFIXES = ["module.", "_orig_mod.", "model.", "backbone.", "encoder.", "net.", "encoder_q."]


WRAPPERS = [
    "state_dict",
    "model",
    "net",
    "model_state_dict",
    "ema",
    "model_ema",
    "state_dict_ema",
    "teacher",
    "weights",
]


@settings(max_examples=40, deadline=None)
@given(
    places=st.lists(st.sampled_from(WRAPPERS), max_size=3),
    prefixes=st.lists(st.sampled_from(PREFIXES), max_size=3),
    beside=st.booleans(),
)
def test_wrappers_and_prefixes_in_any_combination(source, places, prefixes, beside):
    content = prefixed("".join(prefixes), source.state_dict())
    if beside:
        content |= {"normalizer.new_mean": torch.zeros(3), "attacker.normalize.new_std": torch.ones(3)}
    for place in places:
        content = {"epoch": 3, place: content, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}}
    model = build_model("resnet8", 10)
    loaded = fit_weights(model, content, "file.pth")
    assert_same(model, source.state_dict())
    assert loaded.head == "own"
    assert any("normalizer" in note for note in loaded.notes) == beside


def test_wrappers_in_the_middle_of_names(source):
    state = source.state_dict()
    inner = {key.replace("layer1.", "layer1._orig_mod._checkpoint_wrapped_module."): state[key] for key in state}
    model = build_model("resnet8", 10)
    fit_weights(model, inner, "file.pth")
    assert_same(model, state)


def test_a_model_with_a_layer_called_module_keeps_its_name():
    net = nn.Sequential(collections.OrderedDict(module=nn.Linear(2, 3), fc=nn.Linear(3, 2)))
    other = noisy(nn.Sequential(collections.OrderedDict(module=nn.Linear(2, 3), fc=nn.Linear(3, 2))), 0)
    fit_weights(net, {"state_dict": prefixed("module.", other.state_dict())}, "file.pth")
    assert_same(net, other.state_dict())


@pytest.mark.parametrize(
    ("content", "plain", "averaged"),
    [
        (lambda a, b: {"state_dict_ema": b, "state_dict": a}, "state_dict", "state_dict_ema"),
        (lambda a, b: {"model": a, "ema": prefixed("module.", b)}, "model", "ema"),
        (lambda a, b: {"model": {"ema_model": b, "model": a}}, "model/model", "model/ema_model"),
        (lambda a, b: {"state_dict": prefixed("model.", a) | prefixed("model_ema.", b)}, "model", "model_ema"),
        (lambda a, b: prefixed("module.encoder_k.", b) | prefixed("module.encoder_q.", a), "encoder_q", "encoder_k"),
    ],
)
def test_of_plain_weights_and_their_moving_average_the_one_asked_for(source, content, plain, averaged):
    other = noisy(build_model("resnet8", 10), 2)
    file = content(source.state_dict(), other.state_dict())
    for ema, wanted, place in ((False, source, plain), (True, other, averaged)):
        model = build_model("resnet8", 10)
        (note,) = fit_weights(model, file, "file.pth", ema=ema).notes
        assert_same(model, wanted.state_dict())
        assert f"{place} of file.pth; also there" in note.replace(". of", " of")
        assert ("; ema takes" in note) == (not ema)


@pytest.mark.parametrize(
    "content",
    [
        lambda a, b: {"optimizer": {"exp_avg": b, "exp_avg_sq": b}, "model": a},
        lambda a, b: {"Adam_optimizer": {"model": b}, "net": a},
        lambda a, b: {"grad": b, "model": a},
        lambda a, b: {"momentum_buffer": b, "last": a},
        lambda a, b: {"init_state_dict": b, "state_dict": a},
        lambda a, b: {"initial": {"state_dict": b}, "model_state_dict": a},
        lambda a, b: {"state_dict": prefixed("model_init.", b) | prefixed("model.", a)},
        lambda a, b: {"best": b, "modelStateDict": prefixed("module.", a)},
        lambda a, b: {"EMA": b, "model": a},
        lambda a, b: {"modelEma": b, "weights": a},
    ],
)
def test_weights_under_their_usual_name_go_before_what_has_their_shape(source, content):
    other = noisy(build_model("resnet8", 10), 2).state_dict()
    for file in (content(source.state_dict(), other), dict(reversed(content(source.state_dict(), other).items()))):
        model = build_model("resnet8", 10)
        fit_weights(model, file, "file.pth")
        assert_same(model, source.state_dict())


@pytest.mark.parametrize("name", ["EMA", "modelEma", "Teacher", "state_dict_EMA"])
def test_moving_averages_are_known_in_any_case(source, name):
    other, model = noisy(build_model("resnet8", 10), 2).state_dict(), build_model("resnet8", 10)
    fit_weights(model, {"model": source.state_dict(), name: other, "momentum_buffer": {}}, "file.pth", ema=True)
    assert_same(model, other)


def test_what_an_optimizer_keeps_is_no_moving_average(source):
    file = {"momentum_buffer": source.state_dict(), "model": source.state_dict()}
    with pytest.raises(UsageError, match="has no moving average of the weights; it has model. Leave it out"):
        fit_weights(build_model("resnet8", 10), file, "file.pth", ema=True)
    with pytest.raises(UsageError, match=r"has no weights, only what an optimizer keeps \(optimizer/exp_avg\)"):
        fit_weights(build_model("resnet8", 10), {"optimizer": {"exp_avg": source.state_dict()}}, "file.pth")


def test_what_the_usual_name_lacks_is_not_taken_from_another(source):
    cut = {name: value for name, value in source.state_dict().items() if name != "conv1.weight"}
    with pytest.raises(UsageError, match=r"lacks conv1.weight"):
        fit_weights(build_model("resnet8", 10), {"start": source.state_dict(), "state_dict": cut}, "file.pth")


def test_the_teacher_goes_before_the_student(source):
    student = noisy(build_model("resnet8", 10), 3).state_dict()
    file = {
        "student": prefixed("module.backbone.", student) | {"module.head.mlp.0.weight": torch.zeros(4, 4)},
        "teacher": prefixed("backbone.", source.state_dict()) | {"head.mlp.0.weight": torch.zeros(4, 4)},
    }
    model = build_model("resnet8", 10)
    notes = fit_weights(model, file, "dino.pth").notes
    assert_same(model, source.state_dict())
    assert "taken from teacher/backbone." in notes[0]
    assert "head.mlp" in notes[1]


def test_no_moving_average_is_said(source):
    with pytest.raises(UsageError, match="has no moving average of the weights; it has state_dict. Leave it out"):
        fit_weights(build_model("resnet8", 10), {"state_dict": source.state_dict()}, "file.pth", ema=True)
