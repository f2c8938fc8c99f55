"""Published weights: found in what wraps them, whole or refused, and nothing of a file is executed."""

import argparse
import collections
import io
import json
import os
import pathlib
import pickle
import sys
import types
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from trainer.config import UsageError
from trainer.models import build_model, last_layers
from trainer.weights import fit_weights, imagenet_wnids, load_weights

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


@pytest.fixture(scope="module")
def source():
    """A small network with weights of its own in every parameter and buffer."""
    return noisy(build_model("resnet8", 10), 1)


def noisy(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    return model


def prefixed(prefix, state):
    return {prefix + key: value for key, value in state.items()}


def saved(content, path):
    torch.save(content, path)
    return str(path)


def assert_same(model, state):
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name


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


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("layer2.0.conv1.weight"), "lacks layer2.0.conv1.weight. Check --model"),
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


def test_a_last_layer_of_other_classes_names_the_remedy(source):
    for state, words in (
        (build_model("resnet8", 1000).state_dict(), "its last layer is of 1000 classes, the data have 10 "),
        ({n: v for n, v in source.state_dict().items() if "linear" not in n}, "it has no last layer "),
        ({n.replace("linear.", "linear.2."): v for n, v in source.state_dict().items()}, "it has no last layer "),
    ):
        model = build_model("resnet8", 10)
        with pytest.raises(UsageError, match=f"{words}.*new_head of a sweep puts a fresh one in its place"):
            fit_weights(model, state, "file.pth")
        fresh = model.linear.weight.clone()
        loaded = fit_weights(model, state, "file.pth", head="new")
        assert loaded.head == "new"
        left = {name.rpartition(".")[0] for name in state if name.startswith("linear.")}
        assert loaded.notes == tuple(f"the last layer of file.pth is left out: {name}" for name in left)
        assert torch.equal(model.linear.weight, fresh)
        assert torch.equal(model.conv1.weight, state["conv1.weight"])


def test_imagenets_rows_are_taken_by_name():
    wnids = imagenet_wnids()
    assert len(set(wnids)) == 1000
    assert (list(wnids), wnids[0], wnids[-1]) == (sorted(wnids), "n01440764", "n15075141")
    published = noisy(build_model("resnet8", 1000), 4)
    chosen = [7, 3, 999, 500]
    classes = [wnids[row] for row in chosen]
    for head in ("rows", "new"):
        model = build_model("resnet8", 4)
        loaded = fit_weights(model, published.state_dict(), "file.pth", classes=classes, head=head)
        assert loaded.head == "rows"
        assert "of the 1000 classes" in loaded.notes[0]
        assert torch.equal(model.linear.weight, published.linear.weight[chosen])
        assert torch.equal(model.linear.bias, published.linear.bias[chosen])
    with pytest.raises(UsageError, match="new_head"):
        fit_weights(build_model("resnet8", 4), published.state_dict(), "file.pth", classes=classes)
    with pytest.raises(UsageError, match="new_head"):
        fit_weights(build_model("resnet8", 4), published.state_dict(), "f", classes=[*classes[:3], "cat"], head="rows")


@pytest.mark.parametrize(
    ("said", "order"),
    [
        (["b", "a", "c"], [1, 0]),
        (("b", "a", "c"), [1, 0]),
        ([["b", "a word"], ["a", "x"], ["c", "y"]], [1, 0]),
        ({0: "b", 1: "a", 2: "c"}, [1, 0]),
        ({"b": 0, "a": 1, "c": 2}, [1, 0]),
        ([{"name": "a"}, {"name": "b"}, {"name": "c"}], None),
        ([["a"], [], 3], None),
        (["a", "b", "a"], None),  # which a?
        (["a", "b"], None),
        ({"a": torch.zeros(3)}, None),
        (3, None),
        (torch.zeros(3), None),
    ],
    ids=str,
)
def test_classes_that_a_file_names_are_read_in_any_form(said, order):
    published = noisy(build_model("resnet8", 3), 4)
    model, content = build_model("resnet8", 2), {"state_dict": published.state_dict(), "classes": said}
    if order is None:
        with pytest.raises(UsageError, match="its last layer is of 3 classes, the data have 2"):
            fit_weights(model, content, "file.pth", classes=["a", "b"], head="rows")
        return
    assert fit_weights(model, content, "file.pth", classes=["a", "b"], head="rows").head == "rows"
    assert torch.equal(model.linear.weight, published.linear.weight[order])


def test_a_trial_of_another_program_says_nothing_of_classes():
    wnids = imagenet_wnids()
    published = noisy(build_model("resnet8", 1000), 4).state_dict()
    content = {"model": published, "trial": {"number": 3}}
    model = build_model("resnet8", 2)
    assert fit_weights(model, content, "f", classes=[wnids[7], wnids[3]], head="rows").head == "rows"
    assert torch.equal(model.linear.weight, published["linear.weight"][[7, 3]])


def test_rows_of_a_trial_stay_in_the_order_of_its_own_data():
    classes = [*reversed(imagenet_wnids())]
    trial = {"model": noisy(build_model("resnet8", 1000), 5).state_dict(), "trial": {"seed": 0}}
    model = build_model("resnet8", 1000)
    assert fit_weights(model, trial, "state.pt", classes=classes, head="rows").head == "own"
    assert torch.equal(model.linear.weight, trial["model"]["linear.weight"])
    start = trial | {"classes": classes}
    del start["trial"]  # a start.pt says its classes
    fit_weights(model, start, "start.pt", classes=classes, head="rows")
    assert torch.equal(model.linear.weight, trial["model"]["linear.weight"])


NAMES = ["ant", "bee", "cat"]


@pytest.fixture
def of_a_trial():
    """A trial's state on data of three classes."""
    state = noisy(build_model("resnet8", 3), 6).state_dict()
    return {"model": state, "trial": {"seed": 0}, "classes": NAMES}


@pytest.mark.parametrize(
    ("classes", "rows", "note"),
    [
        (["ant", "bee", "cat"], [0, 1, 2], None),
        (["cat", "ant", "bee"], [2, 0, 1], "has the data's 3 classes in another order: its outputs are taken by their"),
        (["cat", "ant"], [2, 0], "of the 3 classes of its last layer those of the data are taken"),
    ],
)
def test_a_trials_outputs_are_taken_by_the_names_of_the_data(of_a_trial, classes, rows, note):
    model = build_model("resnet8", len(classes))
    notes = fit_weights(model, of_a_trial, "state.pt", classes=classes, head="rows").notes
    assert torch.equal(model.linear.weight, of_a_trial["model"]["linear.weight"][rows])
    assert torch.equal(model.linear.bias, of_a_trial["model"]["linear.bias"][rows])
    assert len(notes) == (note is not None)
    assert note is None or note in notes[0]


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (["ant", "bee", "dog"], "its classes are not the data's: dog it has not, where it has cat; evaluate it on"),
        ([f"{n}" for n in range(5)], "0, 1, 2 and 2 more it has not, where it has ant, bee, cat; evaluate"),
        (["ant", "bee", "cat", "dog"], "dog it has not; evaluate"),
    ],
)
def test_a_trial_of_other_classes_is_not_evaluated_on_the_data(of_a_trial, classes, words):
    model = build_model("resnet8", len(classes))
    before = model.linear.weight.clone()
    with pytest.raises(UsageError, match=words):
        fit_weights(model, of_a_trial, "state.pt", classes=classes, head="rows")
    assert torch.equal(model.linear.weight, before)


def test_a_sweep_does_not_start_from_classes_in_another_order(of_a_trial):
    model = build_model("resnet8", 3)
    for classes, words in (
        (NAMES[::-1], "has the data's classes in another order; .*new_head of a sweep takes its own rows"),
        (["ant", "bee", "dog"], "dog it has not, where it has cat; .*new_head of a sweep puts a fresh one"),
    ):
        with pytest.raises(UsageError, match=words):
            fit_weights(model, of_a_trial, "state.pt", classes=classes)
    fit_weights(model, of_a_trial, "state.pt", classes=NAMES)
    fit_weights(model, of_a_trial, "state.pt", classes=NAMES[::-1], head="new")
    assert torch.equal(model.linear.weight, of_a_trial["model"]["linear.weight"].flip(0))


def test_whoever_evaluates_is_not_told_to_start_a_sweep_with_a_fresh_layer(source):
    state = build_model("resnet8", 1000).state_dict()
    with pytest.raises(UsageError, match="1000 classes, the data have 10 .*; evaluate it on data of its own classes"):
        fit_weights(build_model("resnet8", 10), state, "f", classes=list("abcdefghij"), head="rows")


@pytest.mark.parametrize("name", ["resnet8", "resnet18", "timm:test_resnet", "timm:test_vit", "timm:test_convnext3"])
def test_last_layers_give_the_logits(name):
    model = build_model(name, 7)
    (layer,) = last_layers(model)
    assert len(model.get_submodule(layer).weight) == 7


def test_models_of_two_last_layers_need_both():
    model, other = (build_model("timm:deit_tiny_distilled_patch16_224", classes) for classes in (3, 1000))
    assert last_layers(model) == ("head", "head_dist")
    rows = [imagenet_wnids()[row] for row in (5, 1, 2)]
    assert fit_weights(model, other.state_dict(), "f", classes=rows, head="rows").head == "rows"
    assert torch.equal(model.head_dist.weight, other.head_dist.weight[[5, 1, 2]])


def test_settings_beside_the_weights_are_not_made_but_passed_over(source, tmp_path, monkeypatch):
    for name in ("omegaconf", "omegaconf.dictconfig", "easydict"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))

    def made(self, *arguments):
        raise AssertionError("a class of another library was used")

    config = type("DictConfig", (), {"__module__": "omegaconf.dictconfig"})
    easy = type("EasyDict", (dict,), {"__module__": "easydict"})
    sys.modules["omegaconf.dictconfig"].DictConfig, sys.modules["easydict"].EasyDict = config, easy
    one = config()
    one.content = {"lr": 0.1}
    content = {
        "state_dict": source.state_dict(),
        "args": argparse.Namespace(lr=0.5, out=pathlib.PurePosixPath("/tmp"), nested=argparse.Namespace(x=1)),
        "best": np.float64(93.1),
        "curve": np.arange(3.0),
        "counts": collections.defaultdict(list, {"a": [1]}),
        "config": one,
        "hyper_parameters": easy(lr=1),
    }
    path = saved(content, tmp_path / "weights.pth.tar")
    config.__setstate__ = easy.__init__ = made
    model = build_model("resnet8", 10)
    load_weights(model, path)
    assert_same(model, source.state_dict())
    legacy = tmp_path / "legacy.bin"
    torch.save({"net": source.state_dict(), "args": argparse.Namespace()}, legacy, _use_new_zipfile_serialization=False)
    load_weights(build_model("resnet8", 10), str(legacy))


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_in_a_file_is_executed(source, tmp_path, zipped):
    for content, words in (
        ({"state_dict": source.state_dict(), "args": Harmful(tmp_path / "made")}, r"a pickled object \(\w+.mkdir\)"),
        (source, r"a whole pickled model \(trainer.resnet.CifarResNet\)"),
        ({"model": source}, r"a whole pickled model \(trainer.resnet.CifarResNet\)"),
    ):
        path = tmp_path / "file.pth"
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(UsageError, match=words) as refused:
            load_weights(build_model("resnet8", 10), str(path))
        line = str(refused.value)
        assert "torch.save(model.state_dict(), FILE)" in line
        assert "weights_only" not in line
        assert "safe_globals" not in line
        assert "\x1b" not in line
        assert "\n" not in line
    assert not (tmp_path / "made").exists()


def zip_of(**members):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def npz():
    stream = io.BytesIO()
    np.savez(stream, kernel=np.zeros(3))
    return stream.getvalue()


def written(save, *arguments):
    stream = io.BytesIO()
    save(*arguments, stream)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty"),
        (b"\n <!DOCTYPE html><html><head><title>404 Not Found</title>", "an HTML page, '404 Not Found'"),
        (b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>', "an XML document"),
        (b"version https://git-lfs.github.com/spec/v1\nsize 46830571\n", "a Git LFS pointer.*git lfs pull"),
        (json.dumps({"error": "gone"}).encode(), "a JSON file"),
        (b"Not found\n", "it is text: 'Not found'"),
        (b"\x1f\x8b\x08\x00rest", "compressed with gzip; unpack it first"),
        (bytes(range(130, 255)) * 3, "its format is unknown"),
        (npz(), "torch.save did not write; it holds kernel.npy"),
        (written(torch.save, {"a": torch.zeros(500)})[:700], "its end is missing: 700 bytes"),
        (written(torch.jit.save, torch.jit.script(nn.Linear(2, 2))), "a TorchScript archive"),
        (b"\xef\xbb\xbf<!DOCTYPE html><html><title>404</title>", "an HTML page, '404'"),
        ("<html><title>Où</title>".encode("utf-16"), "an HTML page, 'Où'"),
        (b'\xef\xbb\xbf{"error": 1}', "a JSON file"),
        (pickle.dumps({"a": 1}, protocol=4)[:-1], "it is damaged, or no file of torch.save$"),
        (bytes([40, 0, 0, 0, 0, 0, 0, 0]) + b'{"a":{"dtype":"F32","shape":[9]', "incomplete safetensors"),
    ],
)  # fmt: skip
def test_a_file_of_something_else_is_called_by_its_name(content, words, tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=f"not a readable weights file: .*({words})") as refused:
        load_weights(build_model("resnet8", 10), str(path))
    assert "\n" not in str(refused.value)
    assert "\x1b" not in str(refused.value)


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("content", [{"a": 1}, {"state_dict": {"conv1.weight": [1.0] * 5000}}])
def test_a_file_of_pickle_dump_is_called_so(content, protocol, tmp_path):
    (tmp_path / "weights.pth").write_bytes(pickle.dumps(content, protocol=protocol))
    with pytest.raises(UsageError, match=r"is a file of pickle.dump, not of torch.save; .*torch.save\(model"):
        load_weights(build_model("resnet8", 10), str(tmp_path / "weights.pth"))


def test_content_decides_and_not_the_name(source, tmp_path):
    for name in ("weights.pth", "weights.ckpt", "model.safetensors", "pytorch_model.bin"):
        save_file(source.state_dict(), tmp_path / name)
        model = build_model("resnet8", 10)
        load_weights(model, str(tmp_path / name))
        assert_same(model, source.state_dict())
        torch.save(source.state_dict(), tmp_path / name)
        load_weights(model, str(tmp_path / name))


def test_a_cut_legacy_file_is_named_so(source, tmp_path):
    torch.save(source.state_dict(), tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    content = (tmp_path / "w.pth").read_bytes()
    (tmp_path / "w.pth").write_bytes(content[: len(content) // 2])
    with pytest.raises(UsageError, match="damaged or incomplete"):
        load_weights(build_model("resnet8", 10), str(tmp_path / "w.pth"))
