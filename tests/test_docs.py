"""What the documentation shows is what works."""

import argparse
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from regularizers import REGULARIZERS, _commands
from regularizers import __main__ as regularizers_command
from sweeps import command_line, embedded, presets
from sweeps.settings import Sweep
from trainer import command

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
ELSEWHERE = {"pytest", "mlflow", "docs/pull.py"}  # of others, or without a flag


def commands(page):
    """Every `python …` and `ray submit …` of the indented blocks, as a list of words."""
    blocks = "\n".join(re.findall(r"^ {4,}(.*)$", page.read_text(), re.MULTILINE)).replace("\\\n", " ")
    for line in re.findall(r"^(?:python|ray submit CONFIG|ray submit cluster/gpu.yaml) (.*)$", blocks, re.MULTILINE):
        words = [word for word in shlex.split(re.sub(r"[\[\]]", "", line), comments=True) if word != "--"]
        yield words[1:] if words[0] == "-m" else words


SHOWN = [
    words for page in [*PAGES, ROOT / "cluster" / "README.md"] for words in commands(page) if words[0] not in ELSEWHERE
]


class Parsed(BaseException):
    """Raised once a command line was understood, before anything is done."""


@pytest.mark.parametrize("words", SHOWN, ids=" ".join)
def test_every_command_is_understood(words, monkeypatch):
    def only(parse):
        def parse_only(*arguments, **more):
            try:
                parse(*arguments, **more)
            except SystemExit as ended:
                if ended.code:  # else it was --help
                    raise
            raise Parsed

        return parse_only

    monkeypatch.setitem(REGULARIZERS, "charbonnier", REGULARIZERS["mse"])  # that of docs/regularizer.md
    for name in ("parse_args", "parse_intermixed_args"):  # of the benchmarks, and of the regularizers
        monkeypatch.setattr(argparse.ArgumentParser, name, only(getattr(argparse.ArgumentParser, name)))
    if words[0] == "sweeps/all_regularizers.py":  # what the flags make is looked at, too
        monkeypatch.setattr(command_line, "parse", only(command_line.parse))
        monkeypatch.setattr(command_line, "read_yaml", lambda location: {})
        monkeypatch.setattr(Sweep, "load", lambda name, storage=None: Sweep(name=name))
        monkeypatch.setattr(command_line, "extended", lambda sweep, trials: sweep)
    else:
        monkeypatch.setattr(command, "parse", only(command.parse))
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", [str(ROOT / Path(words[0]).parent), *sys.path])
    run = runpy.run_path if words[0].endswith(".py") else runpy.run_module
    with pytest.raises(Parsed):
        run(words[0], run_name="__main__")


def test_every_entry_point_is_shown():
    shown = {words[0] for page in PAGES for words in commands(page)}
    assert {
        "sweeps/all_regularizers.py", "sweeps/resume_best.py", "sweeps.report", "sweeps.status", "sweeps.tracking",
        "trainer.shards", "trainer.evaluate", "regularizers", "docs/pull.py",
    } <= shown  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        there = page.parent / path if path else page
        assert there.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", there.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


def example_under(heading):
    section = (ROOT / "README.md").read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    (example,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    return example


@pytest.mark.slow
def test_the_sweep_of_the_readme_runs_in_a_notebook(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(presets, "DIGITS", presets.DIGITS | {"images_per_epoch": 64, "robust_images": 8})
    monkeypatch.setitem(embedded.PRETRAINING, "images_per_epoch", 640)
    names = {}
    exec(example_under("From Python or a notebook"), names)
    assert sorted(names["table"]["regularizer"]) == ["l2", "none", "ssim"]
    assert set(names["table"].index) == {0, 1, 2}
    assert names["result"].pick in names["result"].trials
    assert names["front"]
    assert names["model"](torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert (tmp_path / "runs" / names["sweep"].name / "report.html").exists()


def test_the_example_of_the_readme_runs_and_reaches_every_weight():
    names = {}
    exec(example_under("The regularizers alone"), names)
    assert names["loss"].isfinite()
    assert all(p.grad is not None for p in names["model"].parameters())


def test_every_penalty_is_explained(shipped):
    method = (ROOT / "docs" / "method.md").read_text()
    assert not [name for name in shipped if f"`{name}`" not in method]


def test_the_table_of_the_penalties_is_what_their_docstrings_say(shipped):
    lines = (ROOT / "docs" / "method.md").read_text().splitlines()
    rows = _commands.markdown(REGULARIZERS[name] for name in sorted(shipped)).splitlines()
    missing = [row for row in rows if row not in lines]
    assert not missing, "the table of docs/method.md is old: put there what python -m regularizers --markdown prints"
    named = {line.split("`")[1] for line in lines if line.startswith("| `")}
    assert set(shipped) <= named <= set(REGULARIZERS), "of a penalty that is gone"


def test_the_picture_of_the_penalties_is_drawn(tmp_path, shipped):
    runpy.run_path(str(ROOT / "docs" / "pull.py"))["draw"](tmp_path / "pull.png", shipped, steps=1)
    with Image.open(tmp_path / "pull.png") as new, Image.open(ROOT / "docs" / "pull.png") as kept:
        assert new.size == kept.size, "a penalty came or went: python docs/pull.py draws it anew"


def example_regularizer():
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "regularizer.md").read_text(), re.DOTALL)
    return example


def test_the_regularizer_of_the_example_passes_the_check(tmp_path, monkeypatch, capsys):
    if "charbonnier" in REGULARIZERS:
        pytest.skip("it is in its place already")
    (tmp_path / "charbonnier.py").write_text(example_regularizer())
    monkeypatch.chdir(tmp_path)
    (words,) = [words for words in commands(ROOT / "docs" / "regularizer.md") if words[1:2] == ["check"]]
    assert regularizers_command.main(words[1:]) == 0, capsys.readouterr().out
    assert (tmp_path / "check-charbonnier.png").stat().st_size > 0


def walks_the_registry(file):
    return re.search(r"(in|sorted\(|len\()\s*REGULARIZERS\b|REGULARIZERS\.(items|keys|values)", file.read_text())


@pytest.mark.slow
@pytest.mark.timeout(1500)  # minutes where nothing else runs
def test_a_clone_with_the_regularizer_of_the_example_passes_the_tests(tmp_path):
    """Nothing but the file is added; the tests that go through the registry, and what else `make check` looks at."""
    clone = tmp_path / "clone"
    shutil.copytree(ROOT, clone, ignore=shutil.ignore_patterns(".*", "runs", "__pycache__", "*.egg-info"))
    (clone / "regularizers" / "charbonnier.py").write_text(example_regularizer())
    tests = [str(file.relative_to(clone)) for file in clone.rglob("tests/**/test_*.py") if walks_the_registry(file)]
    assert {"tests/regularizers/test_all.py", "tests/sweeps/test_report.py", "tests/test_docs.py"} <= set(tests)
    for tool in (
        ("ruff", "check", "--no-cache", "regularizers"), ("ruff", "format", "--no-cache", "--check", "regularizers"),
        ("mypy", "--cache-dir", str(tmp_path / "types"), "-p", "regularizers"),
        ("pytest", "-v", "-p", "no:cacheprovider", "-m", "not slow", *tests),
    ):  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", *tool], cwd=clone, env=os.environ | {"PYTHONPATH": str(clone)},
            capture_output=True, text=True, timeout=1400,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    assert len(re.findall(r"charbonnier.* PASSED", done.stdout)) > 20
