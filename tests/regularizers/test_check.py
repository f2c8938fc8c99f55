"""The checks of a regularizer, and the command that runs them."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from mine import FILE, of, setting, squares, write
from torch import nn

from regularizers import REGULARIZERS, Regularizer, _picture
from regularizers import __main__ as command
from regularizers._check import CHECKS, run
from regularizers._registry import load
from regularizers.functional import minmax_scale

ROOT = Path(__file__).parents[2]


DRAWS = importlib.util.find_spec("matplotlib") is not None


def failed(regularizer):
    return {name: found for name, ended, found in run(regularizer) if ended == "FAILED"}


def column(self, heatmap, images):
    return squares(self, heatmap, images)[:, None]


def coupled(self, heatmap, images):
    return squares(self, heatmap - heatmap.mean(dim=0, keepdim=True), images)


def shared(self, heatmap, images):
    return squares(self, heatmap, images) / len(heatmap)


def half_detached(self, heatmap, images):
    return (heatmap * heatmap.detach()).mean(dim=(1, 2, 3))


def fixed_window(self, heatmap, images):
    return nn.functional.avg_pool2d(heatmap, 9, 1).square().mean(dim=(1, 2, 3))


def single(self, heatmap, images):
    return squares(self, heatmap, images).float()


def contrast(self, heatmap, images):
    return heatmap.flatten(1).std(dim=1) / images.flatten(1).std(dim=1)


def distance_of_norms(self, heatmap, images):
    return (minmax_scale(heatmap) - minmax_scale(images)).flatten(1).square().sum(dim=1).sqrt()


def signs(self, heatmap, images):
    return (heatmap.sign() + 0 * heatmap).mean(dim=(1, 2, 3))


@pytest.mark.parametrize(
    ("formula", "checks", "remedy"),
    [
        (column, {"one value per example"}, "reduce over dim=(1, 2, 3)"),
        (coupled, {"independent of the other examples", "NaN or infinity in one example"}, "over the batch"),
        (shared, {"independent of the other examples"}, "alone: reduce over dim=(1, 2, 3) only"),
        (half_detached, {"gradient by the heatmap", "gradient by a network's weights"}, "detached"),
        (fixed_window, {"image size"}, "begin formula with require_size(heatmap, 9, 'mine')"),
        (single, {"one value per example"}, "torch.float32 from images of float64"),
        (contrast, {"constant image"}, "divide by torch.where(x == 0, 1, x)"),
        (distance_of_norms, {"heatmap equal to the image"}, "safe_sqrt of regularizers.functional"),
        (signs, {"gradient by the heatmap", "gradient by a network's weights", "gradient reaches the weights"}, "is 0"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_each_check_finds_what_it_is_for(formula, checks, remedy):
    found = failed(of(formula))
    assert set(found) == checks
    assert any(remedy in text for text in found.values()), found


def test_a_check_of_a_penalty_of_its_own_leaves_out_what_it_has_not():
    def penalty(self, forward):
        return forward.heatmap(forward.losses).square().mean(dim=(1, 2, 3))

    ended = {name: ended for name, ended, _ in run(of(Regularizer.formula, penalty=penalty))}
    assert ended["image size"] == "-"
    assert ended["gradient by a network's weights"] == "ok"
    assert "FAILED" not in ended.values()


def test_random_draws_are_no_fault_and_hide_none():
    found = CHECKS["independent of the other examples"](REGULARIZERS["spectreg"]())
    assert found == "beside others as alone, with the same random draws"
    drawn = {"score": lambda self, forward: forward.random_logits}
    assert "when the other examples changed" in failed(of(coupled, **drawn))["independent of the other examples"]
    assert " alone: reduce over" in failed(of(shared, **drawn))["independent of the other examples"]


def test_draws_that_cannot_be_replayed_are_no_fault_either():
    def noisy(self, heatmap, images):
        return squares(self, heatmap + torch.empty_like(heatmap).normal_(), images)

    assert CHECKS["independent of the other examples"](of(noisy)) == "draws numbers at random"


def test_a_setting_is_tried_at_both_ends_of_its_range(tmp_path, capsys):
    for low, ended in ((0.0, 1), (0.1, 0)):
        text = setting(f"tunable(0.5, {low}, 2.0)").replace("return heatmap", "return 1 / self.scale * heatmap")
        file = write(tmp_path, text)
        assert command.main(["check", file, "--out", str(tmp_path / "drawn.png")]) == ended
        printed = " ".join(capsys.readouterr().out.split())
        assert f"scale {low:g} to 2)" in printed
        assert ("FAILED ends of the settings' ranges scale=0" in printed) == bool(ended)


@pytest.mark.parametrize("name", sorted(REGULARIZERS))
def test_the_command_passes_it(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(_picture, "SHOWN", (0, 2))
    assert command.main(["check", name, "--out", str(tmp_path / "drawn.png")]) == 0
    printed = capsys.readouterr().out
    assert f"{name} holds." in printed
    assert all(check in printed for check in CHECKS)
    assert " plain steps" in printed
    assert (tmp_path / "drawn.png").exists() == (name != "none" and DRAWS)
    assert ("no distance of heatmap and image" in printed) == (name == "none")


def test_the_picture_ends_where_the_penalty_pulls():
    images = _picture.scene(16)
    start = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    end = _picture.descend(REGULARIZERS["mse"](), start, images, 300)
    before, after = (float(torch.corrcoef(torch.stack([x.flatten(), images.flatten()]))[0, 1]) for x in (start, end))
    assert abs(before) < 0.2
    assert after > 0.9


def test_the_command_takes_a_file_from_anywhere(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, FILE)
    assert command.main(["check", "mine.py"]) == 0, capsys.readouterr().out
    assert not DRAWS or (tmp_path / "check-mine.png").read_bytes().startswith(b"\x89PNG")
    write(tmp_path, FILE.replace(".mean(dim=(1, 2, 3))", ".mean()"))
    assert command.main(["check", str(tmp_path / "mine.py")]) == 1
    printed = capsys.readouterr().out
    assert "FAILED  one value per example" in printed
    assert "formula returned shape ()" in printed
    assert "mine" not in REGULARIZERS
    assert load(ROOT / "regularizers" / "ssim.py", REGULARIZERS) is REGULARIZERS["ssim"]


def test_without_matplotlib_the_picture_is_left_out(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert command.main(["check", "l2"]) == 0
    assert "none: matplotlib is not installed" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("asked", "message"),
    [("sim", "did you mean ssim?"), ("entropy", "; choose from "), ("nowhere/mine.py", "no such file")],
)
def test_what_cannot_be_checked_is_said_in_one_line(asked, message, capsys):
    assert command.main(["check", asked]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1
