"""A regularizer that is wrong says so, by its name: where it is used, as a file, and by the command."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from regularizers import REGULARIZERS, Forward, Regularizer, RegularizerError, _picture
from regularizers import __main__ as command
from regularizers._check import CHECKS, run
from regularizers._registry import RegularizerImportError, load
from regularizers.base import checked
from regularizers.functional import minmax_scale

ROOT = Path(__file__).parents[2]
NAN = float("nan")
DRAWS = importlib.util.find_spec("matplotlib") is not None


def of(formula, **methods):
    """A regularizer with this formula."""
    own = {"formula": formula, "name": "mine", **methods}
    return dataclass(frozen=True, kw_only=True)(type("Mine", (Regularizer,), own))()


def squares(self, heatmap, images):
    return heatmap.square().mean(dim=(1, 2, 3))


def forward(images=None, labels=4):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Softplus(), nn.Flatten(), nn.Linear(4 * 36, 5))
    images = (torch.randn(labels, 3, 8, 8) if images is None else images).requires_grad_()
    return Forward(images, torch.arange(len(images)), model(images))


WRONG = {
    "float": (lambda self, h, i: h.square().mean().item(), "a float, expected a tensor (4,).*leave out float()"),
    "numpy": (lambda self, h, i: h.detach().numpy().mean((1, 2, 3)), "returned a ndarray"),
    "scalar": (lambda self, h, i: h.square().mean(), r"returned shape (), expected .*not over the batch"),
    "(b,1)": (lambda self, h, i: h.square().mean((1, 2, 3))[:, None], "shape (4, 1), .*reduce over dim=(1, 2, 3)"),
    "(b,c)": (lambda self, h, i: h.square().mean((2, 3)), "returned shape (4, 3)"),
    "length": (lambda self, h, i: h[1:].square().mean((1, 2, 3)), "returned shape (3,), expected a tensor (4,)"),
    "integers": (lambda self, h, i: h.mean((1, 2, 3)).long(), "returned torch.int64 values"),
    "booleans": (lambda self, h, i: h.mean((1, 2, 3)) > 0, "returned torch.bool values"),
    "complex": (lambda self, h, i: torch.fft.fft2(h).mean((1, 2, 3)), "returned torch.complex64 values"),
    "detached": (lambda self, h, i: h.detach().mean((1, 2, 3)), "without a graph, .*: leave out .detach()"),
    "NaN": (lambda self, h, i: (h - h).sum((1, 2, 3)) / 0, "returned NaN for every example"),
    "infinity": (lambda self, h, i: h.square().sum((1, 2, 3)) / 0, "returned infinity for every example"),
    "exit": (lambda self, h, i: sys.exit(3), r"raised SystemExit: 3 (test_check.py, line \d+)"),
    "error": (lambda self, h, i: h + i[:, :2], r"raised RuntimeError: The size of .*(test_check.py, line \d+)"),
    "key": (lambda self, h, i: {}["scale"], "raised KeyError: 'scale'"),
    "nothing": (lambda self, h, i: None, "returned a NoneType"),
}  # fmt: skip

if importlib.util.find_spec("numpy") is None:
    del WRONG["numpy"]


def pattern(message):
    return re.sub(r"[()]", r"\\\g<0>", message)


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_formula_is_refused_by_name(kind):
    formula, message = WRONG[kind]
    with pytest.raises(RegularizerError, match=f"^regularizer 'mine': .*{pattern(message)}") as caught:
        of(formula).penalty(forward())
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) <= 200, "the reason of a failed trial is cut there"
    heatmap = torch.randn(4, 3, 8, 8, requires_grad=True)
    with pytest.raises(ValueError, match="regularizer 'mine'"):
        of(formula).distance(heatmap, torch.randn(4, 3, 8, 8))


WRONG_SCORES = {
    "NaN": (lambda self, f: f.class_logits * NAN, "score returned NaN for every example"),
    "infinity": (lambda self, f: f.class_logits.abs() / 0, "score returned infinity for every example"),
    "constant": (lambda self, f: torch.zeros(len(f.labels), requires_grad=True), "does not depend on the images"),
    "exit": (lambda self, f: sys.exit("enough"), r"score raised SystemExit: enough (test_check.py, line \d+)"),
}


@pytest.mark.parametrize("kind", WRONG_SCORES)
def test_so_is_a_wrong_score(kind):
    score, message = WRONG_SCORES[kind]
    with pytest.raises(RegularizerError, match=f"^regularizer 'mine': .*{pattern(message)}") as caught:
        checked(of(squares, score=score), forward())
    assert "\n" not in str(caught.value)


def test_so_is_a_distance_without_the_heatmap_that_it_needs():
    given = forward()
    for images in (given.images, given.images.detach()):  # the training step lets them carry no gradient
        given = Forward(images, given.labels, given.logits)
        with pytest.raises(RegularizerError, match="^regularizer 'mine': has needs_heatmap = False, but no penalty"):
            checked(of(squares, needs_heatmap=False), given)


@pytest.mark.parametrize("kind", WRONG)
def test_so_is_a_penalty_of_its_own(kind):
    wrong = WRONG[kind][0]

    def penalty(self, forward):
        return wrong(self, forward.heatmap(forward.class_logits), forward.images)

    with pytest.raises(RegularizerError, match="^regularizer 'mine': penalty "):
        checked(of(squares, penalty=penalty), forward())
    with pytest.raises(RegularizerError, match="^regularizer 'mine': distance "):
        of(squares, distance=lambda self, h, i: wrong(self, h, i)).penalty(forward())


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda self, forward: forward.losses.mean(), r"score returned shape \(\)"),
        (lambda self, forward: forward.labels, "score returned torch.int64"),
        (lambda self, forward: forward.losses.detach(), "score returned values without a graph"),
        (lambda self, forward: forward.probabilities, "score raised AttributeError"),
    ],
)
def test_a_wrong_score_is_refused_by_name(score, message):
    with pytest.raises(RegularizerError, match=f"^regularizer 'mine': {message}"):
        of(squares, score=score).penalty(forward())


def test_the_baseline_needs_no_graph_and_a_network_without_one_is_no_fault():
    REGULARIZERS["none"]().distance(torch.randn(4, 3, 8, 8, requires_grad=True), torch.randn(4, 3, 8, 8))
    with torch.no_grad():
        of(squares).distance(torch.randn(4, 3, 8, 8, requires_grad=True), torch.randn(4, 3, 8, 8))
    pixels = forward(torch.randn(2, 3, 8, 8))
    with pytest.raises(ValueError, match="requires_grad_"):
        of(squares).penalty(Forward(pixels.images.detach(), pixels.labels, pixels.logits.detach()))


def relative(self, heatmap, images):
    """NaN for an image of one value, as unguarded divisions are."""
    return squares(self, heatmap, images) / images.flatten(1).std(dim=1) * images.flatten(1).std(dim=1)


def test_nan_is_an_error_only_if_every_example_could_be_right():
    heatmaps, images = torch.randn(2, 3, 3, 8, 8)
    images[0] = 2.0
    values = of(relative).distance(heatmaps, images)
    assert values[0] == 0, "one of three"
    assert values[1:].all()
    with pytest.raises(RegularizerError, match="NaN for every example"):
        of(relative).distance(heatmaps[:1], images[:1])
    heatmaps[1:] = NAN
    with pytest.raises(RegularizerError, match="NaN for every example"):
        of(relative).distance(heatmaps, images)
    heatmaps[0] = NAN  # a network that diverges
    assert not of(relative).distance(heatmaps, images).any()


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_what_the_data_type_cannot_hold_counts_nothing(scale):
    heatmaps, images = torch.randn(2, 3, 3, 8, 8)
    quotient = of(lambda self, h, i: squares(self, h, i) / squares(self, h, i))
    assert not quotient.distance(scale * heatmaps, images).any(), "0/0 or ∞/∞"
    assert not of(lambda self, h, i: 1 / squares(self, h, i)).distance(1e-30 * heatmaps, images).any(), "∞"


def test_infinity_of_one_ordinary_example_counts_nothing_and_of_all_is_refused():
    heatmaps, images = torch.randn(2, 3, 3, 8, 8)
    large = of(lambda self, h, i: 1e38 * squares(self, 9 * h, i))
    with pytest.raises(RegularizerError, match="infinity for every example"):
        large.distance(9 * heatmaps, images)
    heatmaps[1:] *= 1e-6
    values = large.distance(9 * heatmaps, images)
    assert values[0] == 0
    assert (values[1:] > 0).all()


class Looks(TorchFunctionMode):
    """Counts how often the host waits for a value."""

    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.number += func is torch.Tensor.__bool__
        return func(*args, **kwargs or {})


@pytest.mark.parametrize(("device", "looks"), [("cpu", [1, 2, 3]), ("meta", [1, 1, 1])])
def test_an_accelerator_is_waited_for_once(device, looks):
    heatmaps, images = torch.randn(2, 3, 3, 8, 8, device=device)
    mine, seen = of(squares), []
    with Looks() as mode:
        for _ in looks:
            mine.distance(heatmaps, images)
            seen.append(mode.number)
    assert seen == looks


def test_errors_of_the_network_and_of_memory_keep_their_own_type():
    def gone(self, heatmap, images):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        of(gone).penalty(forward())


def test_functional_transforms_pass_the_checks():
    heatmaps, images = torch.randn(2, 4, 3, 8, 8)
    mine = of(squares)
    gradient = torch.func.grad(lambda h: mine.distance(h, images).sum())(heatmaps)
    torch.testing.assert_close(gradient, 2 * heatmaps / heatmaps[0].numel())
    mapped = torch.func.vmap(lambda h, i: mine.distance(h[None], i[None])[0])(heatmaps, images)
    torch.testing.assert_close(mapped, mine.distance(heatmaps, images))
    with pytest.raises(RegularizerError, match="without a graph"):
        torch.func.grad(lambda h: of(WRONG["detached"][0]).distance(h, images).sum())(heatmaps)


def failed(regularizer):
    return {name: found for name, ended, found in run(regularizer) if ended == "FAILED"}


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
        (WRONG["(b,1)"][0], {"one value per example"}, "reduce over dim=(1, 2, 3)"),
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


FILE = """
import torch
from dataclasses import dataclass, field
from regularizers.base import Regularizer, tunable


@dataclass(frozen=True, kw_only=True)
class Mine(Regularizer):
    weight: float = tunable(0.5, 0.1, 1000.0)

    def formula(self, heatmap, images):
        return heatmap.square().mean(dim=(1, 2, 3))
"""
CLASS = FILE[FILE.index("@dataclass") :]


def write(folder, text, name="mine.py"):
    (folder / name).write_text(text)
    return str(folder / name)


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


def setting(declared):
    return FILE.replace("    def", f"    scale: float = {declared}\n\n    def", 1)


BROKEN = {
    "syntax": (FILE.replace("def formula(", "def formula(("), "cannot be imported: SyntaxError: .* (line 11)"),
    "import": (FILE.replace("import torch\n", "import tourch\n"), "No module named 'tourch' (line 2); mend"),
    "none": ("import torch\n", "defines 0 Regularizer classes; a file defines exactly one"),
    "two": (FILE + CLASS.replace("Mine", "Other"), "2 Regularizer classes (Mine, Other); a file defines exactly one"),
    "no dataclass": (FILE.replace("@dataclass(frozen=True, kw_only=True)\n", ""), "is no dataclass; write @dataclass"),
    "not frozen": (FILE.replace("frozen=True, ", ""), "cannot be imported: TypeError: cannot inherit non-frozen"),
    "no range": (FILE.replace("tunable(0.5, 0.1, 1000.0)", "0.5"), "class Mine gives `weight` no range; write weight"),
    "range": (FILE.replace("0.1, 1000.0", "0.0, 1000.0"), "the range 0 to 1000; give tunable(default, low, high)"),
    "range of words": (
        FILE.replace("tunable(0.5, 0.1, 1000.0)", "__import__('dataclasses').field(metadata={'low': 'a', 'high': 1})"),
        "gives `weight` a range that ends in 'a'; give tunable",
    ),
    "no heatmap": (FILE.replace("    def", "    needs_heatmap = False\n\n    def", 1), "needs_heatmap = False, but no"),
    "exit": (FILE + "raise SystemExit(3)\n", "cannot be imported: SystemExit: 3 (line"),
    "default": (FILE.replace("    def", "    scale: float\n\n    def", 1), "from its defaults: .*'scale'; give every"),
    "name": (FILE.replace("    weight", "    name: str = 'x'\n    weight", 1), "defines `name`, but the file name"),
    "class": (FILE.replace("class Mine", "class MyOwn"), "class MyOwn is not named after its file; call it Mine"),
    "default of words": (setting("field(default='a', metadata={'low': 1, 'high': 2})"), "gives `scale` a default 'a'"),
    "whole default": (setting("tunable(1, 0, 2)"), "gives `scale` the default 1, which is no float"),
    "empty range": (setting("tunable(1.0, 1.0, 1.0)"), "gives `scale` the range 1 to 1; give tunable"),
    "default outside": (setting("tunable(3.0, 1.0, 2.0)"), "gives `scale` the default 3 outside its range, 1 to 2"),
    "logarithm": (setting("tunable(1.0, 0.0, 2.0, log=True)"), "`scale` a logarithmic range from 0; begin it above 0"),
    "no formula": (FILE.replace("def formula", "def formulae"), "has no formula; define formula(self"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_a_file_that_is_no_regularizer_is_one_line(kind, tmp_path, capsys):
    text, message = BROKEN[kind]
    file = write(tmp_path, text)
    with pytest.raises(ImportError, match=f"^{file}.*{pattern(message)}"):
        load(Path(file), REGULARIZERS)
    assert command.main(["check", file]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {file}")
    assert printed.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ssim.py", "regularizers/ssim.py has it already; rename the file, or check 'ssim'"),
        ("SSIM.py", "regularizers/ssim.py has it already; rename"),
        ("base.py", "regularizers/base.py has it already; rename"),
        ("my-own.py", "take lower-case letters"),
        ("_mine.py", "take lower-case letters"),
    ],
)
def test_a_file_whose_name_cannot_be_a_name_is_refused(name, message, tmp_path):
    with pytest.raises(RegularizerImportError, match=message):
        load(Path(write(tmp_path, FILE, name)), REGULARIZERS)
    assert sys.modules["regularizers.base"].Regularizer is Regularizer


@pytest.mark.parametrize(
    ("asked", "message"),
    [("sim", "did you mean ssim?"), ("entropy", "choose from cor, "), ("nowhere/mine.py", "no such file")],
)
def test_what_cannot_be_checked_is_said_in_one_line(asked, message, capsys):
    assert command.main(["check", asked]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize("words", [["-m", "regularizers"], ["sweeps/all_regularizers.py"]])
def test_a_broken_file_among_the_others_is_one_line(words, tmp_path):
    for folder in ("regularizers", "trainer", "sweeps"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    write(tmp_path / "regularizers", BROKEN["no range"][0])
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: regularizers/mine.py: class Mine gives `weight` no range")
    assert done.stderr.count("\n") == 1
