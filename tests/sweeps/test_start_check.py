"""What a sweep starts from: its numbers against other computations of them, and when it warns."""

import dataclasses
import json
import shutil
import tarfile
from collections import Counter

import pytest
import torch
from scipy.stats import binom, binomtest, chi2

from sweeps import start_check
from sweeps.messages import told_to
from sweeps.run import tell_start
from sweeps.start_check import StartCheck, interval, keep, kept, measure, smallest_difference
from sweeps.terminal import Terminal
from trainer.cache import ShardCache
from trainer.command import flag
from trainer.config import Trial
from trainer.errors import UsageError
from trainer.models import build_model

GOOD = StartCheck(
    accuracy=0.806, measured=5000, chance=0.1, classes=10, checkpoint=True, val_images=5000, attacked=256,
    steps_per_epoch=312, epochs=2,
)  # fmt: skip


@pytest.mark.parametrize(("hits", "images"), [(0, 19), (1, 19), (19, 19), (4030, 5000), (1, 1), (200, 2000)])
def test_the_interval_is_the_exact_one(hits, images):
    exact = binomtest(hits, images).proportion_ci(0.95, "exact")
    assert interval(hits, images) == pytest.approx((exact.low, exact.high), abs=1e-9)


def test_of_no_image_nothing_is_known():
    assert interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("images", "accuracy"), [(5000, 0.806), (256, 0.5), (359, 0.95)])
def test_differences_from_there_on_are_significant_by_mcnemar(images, accuracy):
    discordant = 2 * images * accuracy * (1 - accuracy)
    difference = images * smallest_difference(images, accuracy)
    assert chi2.sf(difference**2 / discordant, df=1) == pytest.approx(0.05)


@pytest.mark.parametrize(("images", "accuracy"), [(5000, 0.806), (256, 0.5), (359, 0.95)])
def test_trials_that_are_equally_accurate_are_seldom_told_apart(images, accuracy):
    """By the probabilities of all pairs of accuracies that two trials can have on images of their own."""
    one = torch.tensor(binom.pmf(range(images + 1), images, accuracy))
    hits = torch.arange(images + 1)
    least = images * smallest_difference(images, accuracy)
    apart = sum(float(share * one[(hits - here).abs() > least].sum()) for here, share in zip(hits, one, strict=True))
    assert 0.03 < apart < 0.06


def test_of_few_images_the_exact_test_sets_the_limit():
    images = round(6 / smallest_difference(19, 1.0))
    assert images == 19
    assert binomtest(6, 6).pvalue < 0.05 < binomtest(5, 5).pvalue
    assert smallest_difference(4, 0.5) == 1.0, "no difference of two accuracies is larger"


def test_a_good_start_is_one_line_without_a_warning(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    with told_to(Terminal()):
        tell_start(GOOD)
    assert capsys.readouterr().out == (
        "start: accuracy 80.6 % of 5000 val images (chance 10.0 %); 312 steps an epoch; two trials closer than 1.6 "
        "points in accuracy or 8.7 in robust accuracy are a tie\n"
    )
    with told_to(Terminal()):
        tell_start(None)  # of a sweep begun before this was measured
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("changes", "said", "remedy"),
    [
        ({"accuracy": 0.1}, "at chance", "`new_head`"),
        ({"accuracy": 0.01}, "at chance", "`new_head`"),
        ({"accuracy": 0.6, "chance": 0.59}, "at chance", "`new_head`"),  # of classes of which one is frequent
        ({"accuracy": 0.1, "checkpoint": False}, "from scratch", "`checkpoint`"),
        ({"steps_per_epoch": 1}, "An epoch has 1 step, ", "`batch_size`"),
        ({"steps_per_epoch": 9}, "An epoch has 9 steps, ", "`images_per_epoch`"),
        ({"val_images": 19, "measured": 19, "accuracy": 17 / 19}, "only 19 images", "put more images"),
        ({"empty": ("f", "g")}, "2 of 10 classes have no train image (f, g)", "names no more than there are"),
        ({"attacked": 19}, "Only 19 images will be attacked", "`robust_images`"),
    ],
)
def test_each_warning_comes_alone_with_what_to_do(changes, said, remedy, capsys):
    start = dataclasses.replace(GOOD, **changes)
    (warning,) = start.warnings
    assert said in warning
    assert remedy in warning.partition(";")[2]
    with told_to(Terminal()):
        tell_start(start)
    _, line = capsys.readouterr().out.splitlines()
    assert line == f"warning: {UsageError(warning).said(flag)}"
    assert "`" not in line


@pytest.mark.parametrize(
    "changes",
    [
        {"accuracy": 0.115},  # 5,000 images tell it from 10 %
        {"checkpoint": False},  # the model brought its weights
        {"steps_per_epoch": 10},
        {"val_images": 125, "measured": 125},
        {"attacked": 193},
    ],
)
def test_what_is_just_enough_is_not_warned_of(changes):
    assert dataclasses.replace(GOOD, **changes).warnings == []


def test_where_all_images_are_attacked_more_are_needed():
    few = dataclasses.replace(GOOD, val_images=19, measured=19, attacked=19, accuracy=17 / 19)
    assert ["robust_images" in warning for warning in few.warnings] == [False, False]


def test_at_chance_trials_may_end_at_any_accuracy():
    assert dataclasses.replace(GOOD, accuracy=0.1).accuracy_tie == smallest_difference(5000, 0.5)


def test_only_a_part_of_a_large_split_is_measured_and_all_of_it_counts():
    part = dataclasses.replace(GOOD, measured=2000)
    assert "of 2000 val images out of 5000 (chance" in part.line
    assert part.accuracy_tie == GOOD.accuracy_tie
    assert part.interval[1] - part.interval[0] > GOOD.interval[1] - GOOD.interval[0]


@pytest.fixture(scope="module")
def labels(digits):
    """Of the val split, read without the project."""
    found = []
    for path in sorted(digits.glob("val-*.tar")):
        with tarfile.open(path) as archive:
            found += [int(archive.extractfile(name).read()) for name in archive.getnames() if name.endswith(".cls")]
    return found


def constant(folder, label):
    """Weights of a net that always answers one class."""
    model = build_model("resnet8", 10)
    torch.nn.init.zeros_(model.linear.weight)
    model.linear.bias.data = torch.eye(10)[label]
    torch.save(model.state_dict(), folder / "constant.pt")
    return str(folder / "constant.pt")


def measured(digits, checkpoint, **changes):
    trial = Trial(
        data=str(digits), model="resnet8", checkpoint=checkpoint, epochs=3, **{"images_per_epoch": 1024} | changes
    )
    return measure(trial, 2, torch.device("cpu"), ShardCache())


def test_always_answering_the_most_frequent_class_is_chance(digits, labels, tmp_path):
    ((frequent, most), *_) = Counter(labels).most_common()
    start = measured(digits, constant(tmp_path, frequent), images_per_epoch=1024, batch_size=32)
    assert start == StartCheck(
        accuracy=most / len(labels), measured=len(labels), chance=most / len(labels), classes=10, checkpoint=True,
        val_images=len(labels), attacked=256, steps_per_epoch=16, epochs=3,
    )  # fmt: skip
    assert start.total_steps == 48
    assert "at chance" in start.warnings[0]
    rare = min(set(labels), key=labels.count)
    below = measured(digits, constant(tmp_path, rare), robust_images=10**6)
    assert below.accuracy == labels.count(rare) / len(labels) < below.chance
    assert below.attacked == len(labels), "no more than there are"


@pytest.mark.parametrize(("names", "absent"), [(list("abcdefghijkl"), ("k", "l")), (list("abcdefghij"), ())])
def test_classes_that_no_image_is_of_are_named(digits, tmp_path, names, absent):
    folder = tmp_path / "foreign"
    shutil.copytree(digits, folder)
    (folder / "meta.json").unlink()
    (folder / "classes.json").write_text(json.dumps(names))
    start = measured(folder, None)
    assert start.empty == absent
    assert any("have no train image" in warning for warning in start.warnings) == bool(absent)


def test_the_cost_is_bounded(digits, monkeypatch):
    monkeypatch.setattr(start_check, "MOST_MEASURED", 40)
    start = measured(digits, None)
    assert start.measured == 40
    assert start.val_images > 40
    assert start.chance >= 0.1
    assert not start.checkpoint


def test_it_is_read_again_as_it_was_written(tmp_path):
    assert kept(str(tmp_path)) is None
    for start in (GOOD, dataclasses.replace(GOOD, empty=("a", "b"))):
        keep(str(tmp_path), start)
        assert kept(str(tmp_path)) == start
    path = tmp_path / start_check.FILE
    written = json.loads(path.read_text())
    del written["empty"]  # as it was once
    path.write_text(json.dumps(written))
    assert kept(str(tmp_path)) == GOOD
