"""Mean, deviation and size of models by name, and of trials that do or do not say their own."""

import builtins
import dataclasses
import json
import subprocess
import sys
from http.server import BaseHTTPRequestHandler

import pytest
from web import served

from trainer.config import Trial, UsageError
from trainer.model_input import ModelInput, model_input
from trainer.models import MODELS, build_model
from trainer.normalization import IMAGENET

HALF = (0.5, 0.5, 0.5)
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@pytest.mark.parametrize(
    ("name", "mean", "std", "size", "fixed"),
    [
        ("resnet20", *dataclasses.astuple(IMAGENET), None, False),
        ("resnet50", *dataclasses.astuple(IMAGENET), 224, False),
        ("timm:tf_efficientnet_lite0", HALF, HALF, 224, False),
        ("timm:resnet18.a1_in1k", *dataclasses.astuple(IMAGENET), 224, False),  # tested at 288, trained at 224
        ("timm:inception_v3", HALF, HALF, 299, False),
        ("timm:test_vit", HALF, HALF, 160, True),
        ("timm:tf_efficientnet_b5.ap_in1k", HALF, HALF, 456, False),
        ("timm:tf_efficientnet_b5.ra_in1k", *dataclasses.astuple(IMAGENET), 456, False),
        ("timm:convnext_base.clip_laion2b_augreg_ft_in12k_in1k", *CLIP, 256, False),
    ],
)
def test_each_model_has_its_own_input(name, mean, std, size, fixed):
    assert model_input(name) == ModelInput(mean, std, size, fixed)
    trial = Trial(model=name)
    assert (trial.mean, trial.std, trial.image_size) == (mean, std, size)


def test_every_own_model_has_the_size_of_its_kind():
    sizes = {name: model_input(name).image_size for name in MODELS}
    assert {name for name, size in sizes.items() if size == 224} == {
        "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"
    }  # fmt: skip
    assert {size for size in sizes.values() if size != 224} == {None}


def test_every_model_of_timm_is_fed_what_it_is_made_for_or_refused_by_name():
    import timm

    others = 0
    for name in timm.list_models() + timm.list_pretrained():
        settings = timm.get_pretrained_cfg(name)
        if settings.input_size == (3, 1024, 768):
            with pytest.raises(UsageError, match=f"model=timm:{name}: takes images of 768x1024 pixels"):
                model_input(f"timm:{name}")
            continue
        found = model_input(f"timm:{name}")
        assert (found.mean, found.std) == (settings.mean, settings.std)
        assert (3, found.image_size, found.image_size) == settings.input_size
        others += found.mean != IMAGENET.mean
    assert others > 400


@pytest.mark.parametrize(("name", "words"), [
    ("timm:resnetwork", "timm .* has no 'resnetwork'"),
    ("timm:resnet18.nowhere", "has no weights 'nowhere' of resnet18; it has .*"),
])  # fmt: skip
def test_names_that_timm_does_not_know_are_refused(name, words):
    with pytest.raises(UsageError, match=words):
        Trial(model=name)


def test_other_channels_than_three_are_refused(monkeypatch):
    import timm

    gray = timm.models.PretrainedCfg(input_size=(1, 96, 96), mean=(0.5,), std=(0.5,))
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda name: gray)
    with pytest.raises(UsageError, match="model=timm:resnet18: takes images of 1 channels"):
        model_input("timm:resnet18")


@pytest.mark.parametrize(("error", "words"), [
    (ImportError("no timm"), r"pip install 'heatmap-sweeps\[timm\]'"), (RuntimeError("no nms"), "from the same index"),
])  # fmt: skip
def test_a_trial_of_a_model_of_timm_needs_timm_until_its_numbers_are_known(monkeypatch, error, words):
    def broken(name, *arguments):
        if name == "timm":
            raise error
        return original(name, *arguments)

    known, original = Trial(model="timm:tf_efficientnet_lite0").to_dict(), builtins.__import__
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    monkeypatch.setattr(builtins, "__import__", broken)
    for needs_timm in (lambda: Trial(model="timm:resnet18"), lambda: build_model("timm:resnet18", 10)):
        with pytest.raises(UsageError, match=words):
            needs_timm()
    assert Trial.from_dict(known).mean == HALF


def test_a_trial_of_an_own_model_does_not_import_timm():
    code = "import sys, trainer.config; trainer.config.Trial(model='resnet50'); print('timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub on loopback that has one model."""
    from huggingface_hub import constants

    settings = {"mean": HALF, "std": [0.25, 0.25, 0.25], "input_size": [3, 96, 96], "fixed_input_size": False}
    config = json.dumps({"architecture": "resnet18", "num_classes": 7, "pretrained_cfg": settings}).encode()

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            known = self.path == "/mine/resnet/resolve/main/config.json"
            self.send_response(200 if known else 404)
            for name, value in {"ETag": '"1"', "X-Repo-Commit": 40 * "a", "Content-Length": len(config)}.items():
                self.send_header(name, str(value if known or name != "Content-Length" else 0))
            self.end_headers()
            return known

        def do_GET(self):
            if self.do_HEAD():
                self.wfile.write(config)

    with served(Hub) as address:
        url = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        yield


def test_a_model_of_the_hub_has_the_input_its_configuration_says(hub):
    trial = Trial(model="timm:hf-hub:mine/resnet")
    assert (trial.mean, trial.std, trial.image_size) == (HALF, (0.25, 0.25, 0.25), 96)
    with pytest.raises(UsageError, match="timm:hf-hub:mine/other: the hub has no configuration") as refused:
        Trial(model="timm:hf-hub:mine/other")
    assert "\n" not in str(refused.value)


def test_what_is_kept_of_a_trial_has_the_numbers():
    own = Trial(model="resnet50")
    other = dataclasses.replace(own, mean=[0.5, 0.4, 0.0], std=HALF)
    assert len({own.digest(), other.digest(), dataclasses.replace(own, image_size=192).digest()}) == 3
    assert (own.to_dict()["mean"], own.to_dict()["image_size"]) == (IMAGENET.mean, 224)
    again = Trial.from_dict(json.loads(json.dumps(other.to_dict())))
    assert again == other
    assert again.mean == (0.5, 0.4, 0.0)
    assert again.digest() == other.digest()


def test_a_trial_from_before_there_was_a_choice_was_fed_with_imagenets():
    settings = Trial(model="timm:tf_efficientnet_lite0").to_dict()
    del settings["mean"], settings["std"]
    assert Trial.from_dict(settings).normalization == IMAGENET


@pytest.mark.parametrize(("wrong", "words"), [
    ({"mean": (0.5, 0.5)}, r"mean=0.5,0.5: give three pixel fractions, from 0 to 1"),
    ({"mean": (123.7, 116.3, 103.5)}, "mean=.*such as 0.485,0.456,0.406; divide gray levels by 255"),
    ({"mean": (-0.1, 0.5, 0.5)}, "mean="), ({"mean": (float("nan"), 0.5, 0.5)}, "mean="),
    ({"std": (0.5, 0.0, 0.5)}, "std=.*above 0 to 1.*such as 0.229,0.224,0.225"), ({"std": (1.0, 1.0, 1.1)}, "std="),
    ({"model": "timm:test_vit", "image_size": 224}, "image_size=224: .*160 pixels a side only; give 160"),
])  # fmt: skip
def test_numbers_that_cannot_be_are_refused(wrong, words):
    with pytest.raises(UsageError, match=words):
        Trial(**{"model": "resnet8"} | wrong)


def test_the_ends_of_the_range_are_allowed():
    trial = Trial(model="resnet8", mean=(0.0, 1.0, 0.5), std=(1.0, 1.0, 1e-3))
    assert (trial.mean, trial.std) == ((0.0, 1.0, 0.5), (1.0, 1.0, 1e-3))
