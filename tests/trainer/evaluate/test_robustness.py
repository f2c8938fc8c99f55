"""Attacks against closed forms, against each other and against an independent library."""

import itertools
import logging

import pytest
import torch
from torch import nn
from whole import whole_split

from trainer.config import UsageError
from trainer.evaluate.autoattack import AutoAttack
from trainer.evaluate.robustness import Gradient, Square, _soft_margins, fgsm
from trainer.normalization import IMAGENET


def generators(count, seed=0):
    return [torch.Generator().manual_seed(1000 * seed + number) for number in range(count)]


def linear(seed=0):
    """Two classes; the difference of their logits is Σ w·x + c in pixel fractions."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(3, 8, 8, generator=generator, dtype=torch.float64)

    def classify(images):
        score = (IMAGENET.to_pixels(images) * weights).sum(dim=(1, 2, 3))
        score = score - 0.5 * weights.sum()
        return torch.stack([score, torch.zeros_like(score)], 1)

    return classify, weights


@pytest.fixture
def mid_gray():
    """Pixels far from black and white, so that no attack is cut off there."""
    generator = torch.Generator().manual_seed(1)
    return IMAGENET.from_pixels(0.4 + 0.2 * torch.rand(200, 3, 8, 8, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("steps", [1, 10])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_robust_accuracy_of_a_linear_model_is_its_closed_form(mid_gray, norm, steps):
    classify, weights = linear()
    logits = classify(mid_gray)
    labels = logits.argmax(1)
    dual = weights.abs().sum() if norm == "linf" else weights.norm()
    radii = logits[:, 0].abs() / dual * 255
    eps = float(radii.median())
    # A step longer than the diameter ends at the ball's far side from wherever it starts.
    attack = Gradient(norm=norm, eps=eps, steps=steps, step_size=1e3 * eps)
    adversarial, withstood = attack(classify, mid_gray, labels, generators(200), IMAGENET)
    certain = (radii / eps - 1).abs() > 1e-9  # the median itself lies on the edge
    assert torch.equal(withstood[certain], (radii > eps)[certain])
    assert certain.sum() >= 198
    changes = 255 * (IMAGENET.to_pixels(adversarial) - IMAGENET.to_pixels(mid_gray)).flatten(1)
    sizes = changes.abs().amax(1) if norm == "linf" else changes.norm(dim=1)
    assert sizes.max() <= eps * (1 + 1e-9)


def test_fgsm_is_the_sign_of_the_gradient(mid_gray):
    classify, weights = linear()
    labels = classify(mid_gray).argmax(1)
    adversarial, withstood = fgsm(2.0)(classify, mid_gray, labels, generators(200), IMAGENET)
    direction = torch.where(labels == 0, -1.0, 1.0)[:, None, None, None] * weights.sign()
    assert 0 < withstood.sum() < len(withstood), "both are looked at: who withstands and who does not"
    change = IMAGENET.to_pixels(adversarial) - IMAGENET.to_pixels(mid_gray)
    torch.testing.assert_close(255 * change, 2 * direction, rtol=0, atol=1e-9)


@pytest.mark.parametrize("attack", [Gradient(eps=5.0), Gradient(norm="l2", eps=60.0), Square(eps=10.0), fgsm(5.0)])
def test_attacks_stay_in_the_ball_and_among_images(attack):
    classify, _ = linear()
    generator = torch.Generator().manual_seed(2)
    pixels = torch.rand(64, 3, 8, 8, generator=generator, dtype=torch.float64).round(decimals=1)  # black and white too
    images = IMAGENET.from_pixels(pixels)
    labels = classify(images).argmax(1)
    adversarial, withstood = attack(classify, images, labels, generators(64), IMAGENET)
    mean, std = (adversarial.new_tensor(values)[:, None, None] for values in (IMAGENET.mean, IMAGENET.std))
    found = adversarial * std + mean
    assert found.min() > -1e-9
    assert found.max() < 1 + 1e-9
    changes = 255 * (found - pixels).flatten(1)
    sizes = changes.norm(dim=1) if getattr(attack, "norm", "linf") == "l2" else changes.abs().amax(1)
    assert sizes.max() <= attack.eps * (1 + 1e-9)
    assert sizes.min() > attack.eps / 10
    assert torch.equal(classify(adversarial).argmax(1) == labels, withstood)
    assert 0 < withstood.sum() < 64


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_starts_fill_the_ball(norm):
    clean = torch.full((400, 3, 4, 4), 0.5)
    attack = Gradient(norm=norm, eps=10.0)
    offsets = 255 * (attack._start(clean, generators(400)) - clean).flatten(1)
    sizes = offsets.abs().amax(1) if norm == "linf" else offsets.norm(dim=1)
    # Uniform in the ball of 48 dimensions: (size / eps)^48 is uniform in [0, 1].
    shares = (sizes / 10).double() ** 48
    assert shares.max() <= 1 + 1e-4
    assert float(shares.mean()) == pytest.approx(0.5, abs=0.05)
    assert offsets.mean().abs() < 0.1


def outcome(attack, classify, images, labels):
    """Which examples withstood."""
    return attack(classify, images, labels, generators(len(images)), IMAGENET)[1]


def share(attack, classify, images, labels):
    return float(outcome(attack, classify, images, labels).double().mean())


@pytest.fixture(scope="module")
def small():
    """A smooth network with random weights in float64, where no rounding tips an example, and 48 images it is sure of.

    It has no batch norm, and its classes are its own first guesses.
    """
    torch.manual_seed(3)
    layers = nn.Conv2d(3, 12, 3), nn.Softplus(), nn.Conv2d(12, 12, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(108, 5)
    network = nn.Sequential(*layers).double().requires_grad_(False)
    images = IMAGENET.from_pixels(torch.rand(48, 3, 9, 9, dtype=torch.float64))
    return network, images, network(images).argmax(1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_more_of_the_same_attack_only_finds_more(small, norm):
    """The first steps, and the first attempt, are those of the shorter attack, so this holds for any network."""
    network, images, labels = small
    eps = {"linf": 6.0, "l2": 60.0}[norm]

    def withstood(**options):
        return outcome(Gradient(norm=norm, eps=eps, step_size=eps / 4, **options), network, images, labels)

    attacks = [withstood(steps=1), withstood(steps=2), withstood(steps=2, restarts=12)]
    for weaker, stronger in itertools.pairwise(attacks):
        assert not (stronger & ~weaker).any()
        assert stronger.sum() < weaker.sum()
    labels = (labels + torch.arange(48) % 2) % 5
    assert not withstood(steps=1)[1::2].any(), "one that is misclassified as it is"


def test_small_steps_find_what_a_leap_passes_over():
    """The class changes only in a narrow band half way to the edge of the ball; the gradient leads there."""
    images = IMAGENET.from_pixels(torch.full((8, 3, 4, 4), 0.5, dtype=torch.float64))
    eps = 8.0

    def classify(images):
        gray_levels = 255 * (IMAGENET.to_pixels(images).mean(dim=(1, 2, 3)) - 0.5)
        score = (gray_levels - eps / 2).abs() - eps / 10
        return torch.stack([score, torch.zeros_like(score)], 1)

    labels = torch.zeros(8, dtype=torch.int64)
    assert share(fgsm(eps), classify, images, labels) == 1
    for steps, withstood in ((4, 1), (20, 0)):
        assert share(Gradient(eps=eps, steps=steps, random_start=False), classify, images, labels) == withstood


def bright(images):
    """Two classes; the difference of their logits is 10 times the mean of the green pixels less a half."""
    score = 10 * (IMAGENET.to_pixels(images)[:, 1].mean(dim=(1, 2)) - 0.5)
    return torch.stack([score, torch.zeros_like(score)], 1)


@pytest.fixture
def grays():
    """Plain grays 1 to 40 gray levels above and below a half, one apart, and their classes."""
    levels = torch.cat([torch.arange(-40, 0), torch.arange(1, 41)]).double()
    images = IMAGENET.from_pixels((0.5 + levels / 255)[:, None, None, None].expand(80, 3, 16, 16).contiguous())
    return images, (levels < 0).long()


def staircase(images):
    """`bright` of pixels in steps of 4 gray levels: the same classes, and no gradient anywhere."""
    pixels = IMAGENET.to_pixels(images)
    return bright(IMAGENET.from_pixels((pixels * 255 / 4).round() * 4 / 255))


def test_a_model_that_hides_its_gradient_is_found_out(grays):
    """Its gradient is zero; the random squares do not care."""
    attacks = Gradient(eps=20.5), Square(eps=20.5)
    white, black = (share(attack, staircase, *grays) for attack in attacks)
    assert white > 0.9, "what a random start finds by chance"
    assert black < 0.75
    white, black = (outcome(attack, bright, *grays) for attack in attacks)
    assert white.double().mean() == 0.5, "the 20 grays on each side that are farther away"
    assert not (white & ~black).any()


@pytest.mark.parametrize("attack", [Gradient(eps=0.2, steps=8), Gradient(norm="l2", eps=4.0, steps=8), fgsm(0.3)])
def test_larger_logits_make_no_model_more_robust(solved, digits, attack):
    """In float32 the cross-entropy of such logits is 0, and so is its gradient."""
    batch = whole_split(digits, "test")
    images, labels = batch.images[:80], batch.labels[:80]
    shares = [share(attack, lambda points, k=k: k * solved(points), images, labels) for k in (1, 10, 100, 1000)]
    assert 0.2 < shares[0] < 0.75
    assert max(shares) - min(shares) < 0.03, "an image or two, as rounding tips them"


def test_the_loss_finds_no_less_than_the_cross_entropy(solved, digits):
    """Of logits that are not large, to which the cross-entropy's gradient is as good a guide."""
    batch = whole_split(digits, "test")
    images, labels = batch.images[:80], batch.labels[:80]
    adversarial = images
    for _ in range(8):  # steps of PGD from the image on the cross-entropy, inside the ball of 0.2 gray levels
        points = adversarial.detach().requires_grad_()
        loss = torch.nn.functional.cross_entropy(solved(points), labels, reduction="sum")
        moved = IMAGENET.to_pixels(points) + 2.5 * 0.2 / 8 / 255 * torch.autograd.grad(loss, points)[0].sign()
        clean = IMAGENET.to_pixels(images)
        moved = (clean + (moved - clean).clamp(-0.2 / 255, 0.2 / 255)).clamp(0, 1)
        adversarial = IMAGENET.from_pixels(moved).detach()
    cross_entropy = float((solved(adversarial).argmax(1) == labels).double().mean())
    own = share(Gradient(eps=0.2, steps=8, random_start=False), solved, images, labels)
    assert own <= cross_entropy + 0.03


@pytest.mark.parametrize("logits", [torch.zeros(1, 4), torch.full((1, 4), 1e30), torch.tensor([[1e9, 1e9, 1e9, -1e9]]),
                                    torch.tensor([[3.0]]), torch.tensor([[1.0, 2.0]])])  # fmt: skip
def test_the_loss_has_a_finite_gradient_wherever_logits_are_equal_or_few(logits):
    """A gradient that is not finite would move the image there, and the model would seem to be wrong."""
    logits = logits.requires_grad_()
    _soft_margins(logits, torch.tensor([0])).sum().backward()
    assert logits.grad.isfinite().all()


def test_more_queries_find_more(grays):
    few, many = (share(Square(eps=20.5, queries=queries), bright, *grays) for queries in (20, 400))
    assert 0.5 <= many < few - 0.2


@pytest.mark.parametrize("attack", [Gradient(eps=6.0, restarts=2), Gradient(norm="l2", eps=60.0), Square(eps=9.0)])
def test_an_example_fares_the_same_in_any_company(small, attack):
    network, images, labels = small
    adversarial, whole = attack(network, images, labels, generators(48), IMAGENET)
    parts = [
        attack(network, images[part], labels[part], generators(48)[part], IMAGENET)
        for part in (slice(0, 5), slice(5, None))
    ]
    torch.testing.assert_close(adversarial, torch.cat([found for found, _ in parts]), rtol=0, atol=1e-9)
    assert torch.equal(whole, torch.cat([withstood for _, withstood in parts]))
    assert 4 < whole.sum() < 44


def test_an_example_once_lost_stays_lost():
    images = IMAGENET.from_pixels(torch.full((4, 3, 8, 8), 0.5))
    visits = []

    def classify(points):
        """Takes one example for the other class on the third visit only."""
        visits.append(points)
        score = 1 + 0 * points.sum(dim=(1, 2, 3))
        if len(visits) == 3:
            score = score * torch.tensor([-1.0, 1.0, 1.0, 1.0])
        return torch.stack([score, torch.zeros_like(score)], 1)

    labels = torch.zeros(4, dtype=torch.int64)
    adversarial, withstood = Gradient(eps=2.0, steps=5)(classify, images, labels, generators(4), IMAGENET)
    assert withstood.tolist() == [False, True, True, True]
    torch.testing.assert_close(adversarial[0], visits[2][0])


def test_the_ensemble_of_another_library_finds_what_there_is_to_find():
    """Of a linear classifier: its distance to the nearest other class is known."""
    generator = torch.Generator().manual_seed(4)
    matrix = torch.randn(4, 3 * 8 * 8, generator=generator)
    images = IMAGENET.from_pixels(0.4 + 0.2 * torch.rand(40, 3, 8, 8, generator=generator))

    def classify(images):
        return (IMAGENET.to_pixels(images) - 0.5).flatten(1) @ matrix.T

    logits = classify(images)
    labels = logits.argmax(1)
    margins = logits.gather(1, labels[:, None]) - logits
    dual = (matrix[labels][:, None] - matrix).abs().sum(2)
    radii = 255 * (margins / dual).scatter(1, labels[:, None], float("inf")).amin(1)
    eps = float(radii.median())
    certain = (radii / eps - 1).abs() > 0.01
    assert certain.sum() >= 35
    logging.getLogger("auto-attack").setLevel(logging.ERROR)
    ensemble = AutoAttack(eps=eps)
    adversarial, withstood = ensemble(classify, images, labels, generators(40), IMAGENET)
    assert AutoAttack(eps=12.0).key == "autoattack_linf_eps12"
    assert torch.equal(withstood[certain], (radii > eps)[certain])
    assert torch.equal(classify(adversarial).argmax(1) == labels, withstood)
    assert (255 * (IMAGENET.to_pixels(adversarial) - IMAGENET.to_pixels(images))).abs().max() <= eps * (1 + 1e-4)
    ours = outcome(Gradient(eps=eps, steps=20, restarts=3), classify, images, labels)
    assert ours[radii > 1.01 * eps].all()
    assert (ours & ~withstood).sum() <= 4, "not much weaker on a model that hides nothing"


def test_keys_say_every_setting():
    keys = {
        attack.key
        for attack in (fgsm(2.0), Gradient(eps=2.0), Gradient(eps=2.0, steps=8), Gradient(eps=2.0, restarts=5),
                       Gradient(norm="l2", eps=128.0), Gradient(eps=2.0, step_size=1.0),
                       Gradient(eps=2.0, random_start=False), Square(eps=2.0), Square(eps=2.0, queries=9))
    }  # fmt: skip
    assert keys == {
        "fgsm_linf_eps2", "pgd_linf_eps2_step0.25x20", "pgd_linf_eps2_step0.625x8",
        "pgd_linf_eps2_step0.25x20_restarts5", "pgd_l2_eps128_step16x20", "pgd_linf_eps2_step1x20",
        "pgd_linf_eps2_step0.25x20_from_image", "square_linf_eps2_x100", "square_linf_eps2_x9",
    }  # fmt: skip


@pytest.mark.parametrize("wrong", [{"norm": "l1"}, {"steps": 0}, {"restarts": 0}, {"eps": -1.0}])
def test_attacks_that_cannot_be_are_refused(wrong):
    with pytest.raises(UsageError, match=str(next(iter(wrong)))):
        Gradient(**{"eps": 1.0} | wrong)


def test_attacks_keep_no_activations_for_gradients_of_weights():
    from trainer.evaluate.classify import classifier

    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Softplus(), nn.Conv2d(16, 16, 3), nn.Softplus(), nn.Flatten(),
                          nn.Linear(16 * 28 * 28, 2))  # fmt: skip
    images = torch.randn(8, 3, 32, 32).requires_grad_()

    def kept(classify):
        sizes = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: sizes.update({t.data_ptr(): t.nbytes}) or t, lambda t: t
        ):
            classify(images)
        weights = {p.data_ptr() for p in model.parameters()}
        return sum(size for pointer, size in sizes.items() if pointer not in weights)

    with classifier(model, "float32") as classify:
        lean = kept(classify)
        assert not any(p.requires_grad for p in model.parameters())
    assert all(p.requires_grad for p in model.parameters())
    # The last layer would keep its input for its weights only. Convolutions keep theirs whatever is asked of them.
    assert kept(model) - lean == 4 * 8 * 16 * 28 * 28
