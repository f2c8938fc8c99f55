"""A file that is no regularizer says so in one line: in the folder, by its path and by the command."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mine import CLASS, FILE, pattern, setting, write

from regularizers import REGULARIZERS, Regularizer
from regularizers import __main__ as command
from regularizers._registry import RegularizerImportError, load

ROOT = Path(__file__).parents[2]


BROKEN = {
    "syntax": (FILE.replace("def formula(", "def formula(("), "cannot be imported: SyntaxError: .* (line 11)"),
    "import": (FILE.replace("import torch\n", "import tourch\n"), "No module named 'tourch' (line 2); fix"),
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
}  # fmt: skip  # fmt: skip


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
    code = """if True:
        import sys
        try:
            import regularizers._registry
        except ImportError:
            print(sys.excepthook is sys.__excepthook__)"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout == "True\n", "a library leaves that as it is"
