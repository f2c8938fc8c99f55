"""Models by name, against torchvision's where they share names and weights."""

import pytest
import torch

from trainer.config import UsageError
from trainer.models import build_model
from trainer.weights import load_weights


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_weights_of_torchvision_give_its_outputs(name, tmp_path):
    import torchvision.models

    torch.manual_seed(0)
    theirs = getattr(torchvision.models, name)(num_classes=7).eval()
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    ours = build_model(name, 7).eval()
    load_weights(ours, str(tmp_path / "weights.pth"))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("depth", "convolutions"), [(20, 19), (32, 31), (44, 43), (56, 55)])
def test_cifar_networks_have_their_depth(depth, convolutions):
    model = build_model(f"resnet{depth}", 10)
    assert sum(isinstance(module, torch.nn.Conv2d) for module in model.modules()) == convolutions
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def test_unknown_names_are_refused():
    with pytest.raises(
        UsageError, match="^model=resnet9: is unknown; did you mean resnet.*There are resnet8, .*timm:NAME$"
    ):
        build_model("resnet9", 10)
    with pytest.raises(
        UsageError, match="=tf_efficientnet_lite0: is unknown; did you mean timm:tf_efficientnet_lite0\\?"
    ):
        build_model("tf_efficientnet_lite0", 10)
    with pytest.raises(UsageError, match="has no 'resnetwork'"):
        build_model("timm:resnetwork", 10)
    with pytest.raises(UsageError, match="^activation=tanh: choose from relu, "):
        build_model("resnet8", 10, "tanh")
