"""The command `heatmap-sweeps` and what all of its commands do alike."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sweeps import Sweep
from sweeps.cli import COMMANDS
from sweeps.cli import main as heatmap_sweeps

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "ray", "mlflow", "optuna", "pyarrow", "timm"}


WRONG = [  # a command line, the exit status, and what it prints
    *([name, "--help"] for name in COMMANDS),
    *([name, "--storrage", "x"] for name in COMMANDS),
    ["sweep", "--data", "/nowhere", "--model", "resnet8"],
    ["sweep", "--data", "tests", "--model", "resnet8", "--checkpoint", "/nowhere.pt"], ["sweep", "--batch-size", "0"],
    ["sweep", "--name", "taken"], ["sweep", "--name", "nothing", "--resume"],
    ["sweep", "--name", "taken", "--extend", "1"], ["status", "--name", "nothing"], ["report", "--name", "nothing"],
    ["report", "--name", "taken"], ["resume-best", "--name", "nothing"], ["resume-best", "--name", "taken"],
    ["resume-best", "--name", "nothing", "--epochs", "0"], ["flush", "--name", "nothing"],
    ["evaluate", "--checkpoint", "a", "--data", "b", "--eps", "x"],
    ["evaluate", "--checkpoint", "a", "a", "--data", "b"],
    ["shards", "--images", "a"], ["shards", "--images", "a", "--verify", "b"], ["regularizers", "check", "sim"],
]  # fmt: skip


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A storage with one sweep, which has not ended."""
    folder = tmp_path_factory.mktemp("kept")
    Sweep(name="taken", storage=folder, regularizers=("l2",)).save()
    return folder


@pytest.mark.parametrize("arguments", WRONG, ids=" ".join)
def test_help_and_what_is_wrong_is_told_in_one_line_without_pytorch_ray_and_mlflow(arguments, kept):
    code = (
        "import sys\nfrom sweeps.cli import main\n"
        "try:\n    status = main(sys.argv[1:])\nexcept SystemExit as ended:\n    status = ended.code or 0\n"
        "print('loaded:', status, *sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=True,
        env=os.environ | {"SWEEPS_STORAGE": str(kept)},
    )  # fmt: skip
    printed, _, loaded = done.stdout.rpartition("loaded: ")
    status, *modules = loaded.split()
    assert not (HEAVY - ({"pyarrow"} if "--name" in arguments else set())) & set(modules)  # which looks for files
    if "--help" in arguments:
        assert (status, done.stderr) == ("0", "")
        assert printed.startswith(f"usage: heatmap-sweeps {arguments[0]} ")
    else:
        assert (status, printed, done.stderr.count("\n")) == ("2", "", 1), done.stderr
        assert done.stderr.startswith("error: ")
    assert sorted(kept.rglob("*")) == [kept / "taken", kept / "taken/sweep.yaml"], "nothing is written"


def test_the_command_lists_what_it_has_and_names_the_nearest(capsys):
    assert heatmap_sweeps([]) == heatmap_sweeps(["--help"]) == 0
    listed = capsys.readouterr().out
    assert all(f"\n  {name} " in listed for name in COMMANDS)
    assert heatmap_sweeps(["statsu", "--name", "x"]) == 2
    assert capsys.readouterr().err == "error: there is no command 'statsu'; did you mean status?\n"


def test_every_command_looks_where_the_environment_says(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SWEEPS_STORAGE", str(tmp_path / "kept"))
    commands = [("sweep", "--resume"), ("status",), ("report",), ("resume-best",), ("flush",), ("rebuild",)]
    for name, *more in commands:
        assert heatmap_sweeps([name, "--name", "nothing", *more]) == 2
        assert f"no sweep 'nothing' under {tmp_path}/kept" in capsys.readouterr().err
