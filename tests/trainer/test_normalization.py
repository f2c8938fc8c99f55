"""What a model is fed is what its trial says, wherever images go into it; a pixel is a pixel whatever the deviation."""

import dataclasses

import pytest
import torch
from PIL import Image
from torch import nn

import trainer.calibrate
import trainer.fit
from trainer.cache import ShardCache
from trainer.config import Trial
from trainer.evaluate import plan as plans
from trainer.evaluate.autoattack import AutoAttack
from trainer.evaluate.gallery import examples, explain
from trainer.evaluate.measure import evaluate
from trainer.evaluate.robustness import Gradient, Square, fgsm
from trainer.evaluate.subject import Subject, load_subject
from trainer.models import build_model
from trainer.normalization import IMAGENET, Normalization
from trainer.shards import read_shards

CPU = torch.device("cpu")
HALF = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
NONE = Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
UNEVEN = Normalization((0.1, 0.5, 0.9), (0.05, 0.3, 1.0))
NAMES = ("imagenet", "half", "none", "uneven")
EACH = pytest.mark.parametrize("normalization", [IMAGENET, HALF, NONE, UNEVEN], ids=NAMES)


def trial_of(digits, normalization, **settings):
    fixed = {"data": str(digits), "model": "resnet8", "batch_size": 16, "robust_images": 12, "pgd_steps": 2}
    return Trial(**fixed | dataclasses.asdict(normalization) | settings)


class Fed(nn.Module):
    """Keeps what it is fed."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def forward(self, images):
        self.batches.append(images.detach().clone())
        return images.mean((2, 3)) @ torch.ones(3, 10)


def levels_of(digits, trial, count):
    """Gray levels of images of val as the trial's size has them."""
    pixels = examples(read_shards(digits, "val"), dataclasses.replace(trial, **dataclasses.asdict(NONE)), count, CPU)
    return (255 * pixels.images).round().byte()


@pytest.mark.parametrize("name", ["timm:test_vit", "timm:test_efficientnet", "timm:dpn68b.mx_in1k"])
def test_a_model_of_timm_is_fed_what_timm_feeds_it(digits, name):
    import timm

    trial = Trial(data=str(digits), model=name, batch_size=8)
    model = Fed()
    evaluate(model, read_shards(digits, "val"), trial, plans.Plan(examples=8, attacked=1, attacks=()), CPU)
    known = timm.get_pretrained_cfg(name.removeprefix("timm:")).to_dict()
    settings = timm.data.resolve_data_config({}, pretrained_cfg=known)
    assert model.batches[0].shape[1:] == settings["input_size"]
    theirs = timm.data.create_transform(**settings).transforms[-2:]  # what follows the resize and crop
    expected = []
    for levels in levels_of(digits, trial, 8):
        image = Image.fromarray(levels.permute(1, 2, 0).numpy())
        for step in theirs:
            image = step(image)
        expected.append(image)
    torch.testing.assert_close(model.batches[0], torch.stack(expected), rtol=0, atol=2e-6)


@EACH
def test_there_and_back(normalization):
    levels = torch.arange(256, dtype=torch.uint8).repeat(3).reshape(1, 3, 16, 16)
    images = normalization.normalize(levels)
    torch.testing.assert_close(normalization.to_pixels(images), levels / 255, rtol=0, atol=1e-6)
    torch.testing.assert_close(normalization.from_pixels(levels / 255), images, rtol=1e-5, atol=2e-6)
    mean, std = (torch.tensor(values)[:, None, None] for values in dataclasses.astuple(normalization))
    torch.testing.assert_close(images, (levels / 255 - mean) / std, rtol=1e-5, atol=2e-6)


@EACH
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_radius_is_in_pixels_whatever_the_deviation(normalization, norm):
    """A linear model of what it is fed by w·x: of pixels by (w/std)·x, moved at radius r by r·‖w/std‖."""
    generator = torch.Generator().manual_seed(0)
    on_pixels = torch.randn(3, 8, 8, generator=generator, dtype=torch.float64)
    weights = on_pixels * torch.tensor(normalization.std, dtype=torch.float64)[:, None, None]
    pixels = 0.3 + 0.4 * torch.rand(100, 3, 8, 8, generator=generator, dtype=torch.float64)
    images = normalization.from_pixels(pixels)
    middle = (normalization.from_pixels(torch.full_like(pixels[:1], 0.5))[0] * weights).sum()

    def classify(images):
        score = (images * weights).sum(dim=(1, 2, 3)) - middle
        return torch.stack([score, torch.zeros_like(score)], 1)

    scores = classify(images)[:, 0]
    labels = (scores < 0).long()
    radii = 255 * scores.abs() / (on_pixels.abs().sum() if norm == "linf" else on_pixels.norm())
    eps = float(radii.sort().values[49:51].mean())  # half of them withstand
    attacks = [Gradient(norm=norm, eps=eps, steps=1, step_size=eps, random_start=False),
               Gradient(norm=norm, eps=eps, steps=1, step_size=1e3 * eps)]  # fmt: skip
    assert norm == "l2" or attacks[0] == fgsm(eps)
    for attack in attacks:
        generators = [torch.Generator().manual_seed(number) for number in range(100)]
        found, withstood = attack(classify, images, labels, generators, normalization)
        assert torch.equal(withstood, radii > eps)
        changes = 255 * (normalization.to_pixels(found) - pixels).flatten(1)
        sizes = changes.abs().amax(1) if norm == "linf" else changes.norm(dim=1)
        assert sizes.max() == pytest.approx(eps, rel=1e-9)
        if not attack.random_start:  # else some have fallen at the start
            torch.testing.assert_close(sizes, torch.full_like(sizes, eps), rtol=1e-9, atol=0)


@EACH
@pytest.mark.parametrize("attack", [Square(eps=24.0, queries=20), AutoAttack(eps=24.0)], ids=["square", "autoattack"])
def test_other_attacks_stay_in_the_same_ball(normalization, attack):
    generator = torch.Generator().manual_seed(1)
    pixels = 0.2 + 0.6 * torch.rand(6, 3, 16, 16, generator=generator)

    def classify(images):
        score = normalization.to_pixels(images).mean((1, 2, 3)) - 0.5  # bright or dark
        return torch.stack([score, -score, score - 1, score - 2], 1)

    images = normalization.from_pixels(pixels)
    labels = classify(images).argmax(1)
    generators = [torch.Generator().manual_seed(number) for number in range(6)]
    found, withstood = attack(classify, images, labels, generators, normalization)
    sizes = 255 * (normalization.to_pixels(found) - pixels).abs().amax((1, 2, 3))
    assert sizes.max() <= 24 + 1e-3
    assert (~withstood).any()
    assert sizes[~withstood].min() > 23.9


class OnPixels(nn.Module):
    """A network of pixel fractions, whatever normalization its images come in."""

    def __init__(self, network, normalization):
        super().__init__()
        self.network, self.normalization = network, normalization

    def forward(self, images):
        mean, std = (images.new_tensor(v)[:, None, None] for v in dataclasses.astuple(self.normalization))
        return self.network(IMAGENET.from_pixels(images * std + mean))


def test_no_accuracy_depends_on_the_normalization_of_the_same_network(solved, digits):
    """Plain, attacked, noisy and corrupted: pixels are what all of that is done to."""
    reports = []
    for normalization in (IMAGENET, HALF, UNEVEN):
        trial = trial_of(digits, normalization, pgd_eps=24 / 255)
        plan = plans.full(trial, attacked=12, eps=(12.0,), l2_eps=(100.0,), steps=2, queries=5)
        model = OnPixels(solved, normalization)
        reports.append(evaluate(model, read_shards(digits, "test"), trial, plan, CPU))
    names = [name for name in reports[0] if "accuracy" in name]
    assert len(names) > 70
    for other in reports[1:]:
        assert other["test/loss"] == pytest.approx(reports[0]["test/loss"], rel=1e-3)
        # Numbers round a little differently, which may tip an example.
        different = [name for name in names if abs(other[name] - reports[0][name]) > 1e-9]
        assert len(different) <= 4, different
    assert reports[0]["test/robust_accuracy"] < reports[0]["test/subset_accuracy"]


def test_pictures_of_an_image_are_the_same_under_every_normalization(digits):
    torch.manual_seed(0)
    model = build_model("resnet8", 10)
    shown = [
        explain(Subject("", model, trial_of(digits, one)), read_shards(digits, "val"), 4, CPU).pixels
        for one in (IMAGENET, HALF, UNEVEN)
    ]
    assert torch.equal((255 * shown[0]).round().byte(), levels_of(digits, trial_of(digits, IMAGENET), 4))
    for other in shown[1:]:
        torch.testing.assert_close(other, shown[0], rtol=0, atol=1e-6)


def test_a_trial_is_calibrated_trained_and_evaluated_on_its_own_numbers(digits, monkeypatch):
    """Digits are white on black."""
    trial = trial_of(digits, UNEVEN, epochs=1, images_per_epoch=32, augment=False)
    fed = []
    step, make = trainer.fit.train_step, trainer.calibrate.RegularizedLoss.forward
    monkeypatch.setattr(trainer.fit, "train_step", lambda loss, batch, *rest, **more: fed.append(batch.images)
                        or step(loss, batch, *rest, **more))  # fmt: skip
    states = []
    trainer.fit.fit(trial, lambda report, state: states.append(state))
    monkeypatch.setattr(trainer.calibrate.RegularizedLoss, "forward", lambda self, images, *rest: fed.append(images)
                        or make(self, images, *rest))  # fmt: skip
    trainer.calibrate.calibrate(trial, ["l2"], CPU, ShardCache())
    assert len(fed) == 2 + trainer.calibrate.BATCHES
    black, white = UNEVEN.from_pixels(torch.zeros(1, 3, 1, 1)), UNEVEN.from_pixels(torch.ones(1, 3, 1, 1))
    for images in fed:
        torch.testing.assert_close(images.amin((0, 2, 3)), black.flatten(), rtol=1e-5, atol=1e-5)
        assert (images.amax((0, 2, 3)) > 0.9 * white.flatten()).all()
    assert Trial.from_dict(states[0]["trial"]).normalization == UNEVEN


def test_a_checkpoint_is_evaluated_on_the_numbers_of_its_own_trial(digits, tmp_path):
    model = build_model("timm:test_efficientnet", 10)
    trial = Trial(data=str(digits), model="timm:test_efficientnet", image_size=32, **dataclasses.asdict(UNEVEN))
    settings = trial.to_dict()
    torch.save({"model": model.state_dict(), "trial": settings}, tmp_path / "own.pt")
    earlier = {name: value for name, value in settings.items() if name not in ("mean", "std")}
    torch.save({"model": model.state_dict(), "trial": earlier}, tmp_path / "earlier.pt")
    torch.save(build_model("timm:test_vit", 10).state_dict(), tmp_path / "published.pt")

    def normalization(file, **changes):
        return load_subject(str(tmp_path / file), str(digits), changes).trial.normalization

    assert normalization("own.pt") == UNEVEN
    assert normalization("own.pt", std=HALF.std) == Normalization(UNEVEN.mean, HALF.std)
    assert normalization("earlier.pt") == IMAGENET
    assert normalization("published.pt", model="timm:test_vit") == HALF
    assert normalization("published.pt", model="timm:test_vit", mean=NONE.mean) == Normalization(NONE.mean, HALF.std)
