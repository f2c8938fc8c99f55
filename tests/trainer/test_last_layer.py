"""Last layers of other classes: rows are taken by the names of the classes, or the remedy is named."""

import pytest
import torch
from weight_files import noisy

from trainer.config import UsageError
from trainer.last_layer import imagenet_wnids
from trainer.models import build_model, last_layers
from trainer.weights import fit_weights


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
        (["ant", "bee", "dog"], "its classes are not the data's: it lacks dog and has cat instead; evaluate it on"),
        ([f"{n}" for n in range(5)], "it lacks 0, 1, 2 and 2 more and has ant, bee, cat instead; evaluate"),
        (["ant", "bee", "cat", "dog"], "it lacks dog; evaluate"),
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
        (["ant", "bee", "dog"], "it lacks dog and has cat instead; .*new_head of a sweep puts a fresh one"),
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
