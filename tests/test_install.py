"""The project installed by pip, away from its folder, and the command lines it prints."""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from sweeps.settings import Sweep
from trainer import command
from trainer.command import how_to_run

ROOT = Path(__file__).parents[1]


def started(line, where, **environment):
    """How a command line ends that a user pastes into a shell."""
    return subprocess.run(
        ["/bin/sh", "-c", line], cwd=where, capture_output=True, text=True, env=os.environ | environment
    )


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # no heatmap-sweeps there
    return tmp_path


@pytest.mark.parametrize("name", ["sweep", "resume-best", "status", "flush"])
def test_a_printed_command_runs_from_any_folder(name, elsewhere):
    """Without being installed."""
    line = how_to_run(name, "--name", "it's mine", "--help")
    done = started(line, Path("/"))
    assert done.returncode == 0, done.stderr
    assert "usage: " in done.stdout


def test_a_printed_command_names_the_script_or_is_that_of_ray_submit(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr(command.sys, "argv", [str(ROOT / "sweeps/all_regularizers.py")])
    assert shlex.split(how_to_run("resume-best", "--name", "s"))[1:] == [f"{ROOT}/sweeps/resume_best.py", "--name", "s"]
    assert shlex.split(how_to_run("status", "--name", "s"))[1:] == [f"{ROOT}/sweeps/cli.py", "status", "--name", "s"]
    (tmp_path / "resume_best.py").touch()
    monkeypatch.setattr(command.sys, "argv", [str(tmp_path / "resume_best.py")])  # as `ray submit` brings it
    assert how_to_run("sweep", "--resume") == "ray submit CONFIG sweeps/all_regularizers.py -- --resume"


def test_a_printed_command_names_the_storage(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for storage in ("my runs", "runs/"):
        line = Sweep(name="s", storage=storage).command("status")
        assert shlex.split(line)[-2:] == ["--storage", f"{tmp_path}/{storage.rstrip('/')}"]


@pytest.mark.slow
def test_what_pip_installs_has_the_command_and_prints_it(tmp_path):
    """In an environment that has everything else from this one; nothing is downloaded."""
    source, made = tmp_path / "source", tmp_path / "made"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "runs", "__pycache__", "*.egg-info", "build"))
    venv.create(made, with_pip=False)
    packages = next(made.glob("lib/python*/site-packages"))
    (packages / "all_else.pth").write_text(sysconfig.get_path("purelib"))
    install = ["install", "-q", "--no-deps", "--no-index", "--no-build-isolation", str(source)]
    subprocess.run([sys.executable, "-m", "pip", "--python", str(made / "bin/python"), *install], check=True)
    shutil.rmtree(source)
    away = tmp_path / "away"
    away.mkdir()
    clean = {"PYTHONPATH": "", "SWEEPS_STORAGE": str(tmp_path / "kept"), "OMP_NUM_THREADS": "1"}
    code = (
        "from sweeps import Sweep\nSweep(name='s').save()\n"
        "for name in ('sweep', 'resume-best', 'status', 'report', 'flush'): print(Sweep(name='s').command(name))"
    )
    for path, start in ((f"{made}/bin:/usr/bin:/bin", "heatmap-sweeps "), ("/usr/bin:/bin", f"{made}/bin/python ")):
        said = started(f"{made}/bin/python -c {shlex.quote(code)}", away, PATH=path, **clean)
        assert said.returncode == 0, said.stderr
        lines = said.stdout.splitlines()
        assert len(lines) == 5
        for line in lines:
            assert line.startswith(start)
            done = started(f"{line} --help", away, PATH=path, **clean)
            assert done.returncode == 0, (line, done.stderr)
    done = started("heatmap-sweeps status --name s", away, PATH=f"{made}/bin:/usr/bin:/bin", **clean)
    assert done.returncode == 2
    assert "its event log lies in" in done.stderr
    for name in ("evaluate", "shards", "regularizers", "rebuild"):
        assert started(f"{made}/bin/heatmap-sweeps {name} --help", away, **clean).returncode == 0, name
