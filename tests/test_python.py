"""Which interpreters there are to be: the Makefile, the package, the bootstrap of a machine and the README agree."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_every_place_says_the_same_versions():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    oldest, above = (int(minor) for minor in re.findall(r"3\.(\d+)", project["requires-python"]))
    newest = above - 1
    assert [c.rpartition(".")[2] for c in project["classifiers"]] == [str(n) for n in range(oldest, above)]
    for name in ("Makefile", "cluster/bootstrap.sh"):
        text = (ROOT / name).read_text()
        assert f"not (3, {oldest}) <= sys.version_info[:2] <= (3, {newest})" in text, name
        assert f"3.{oldest} to 3.{newest} is needed" in text, name
    assert f"You need Python 3.{oldest} to 3.{newest} " in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("version", ["3.10.13", "3.11.2", "3.14.0", "3.15.0"])
def test_make_refuses_an_interpreter_it_is_not_for_before_anything_is_installed(tmp_path, version):
    stand_in = tmp_path / "a python"  # the interpreter of these tests under another version, whose venv is a mark
    numbers = version.replace(".", ", ")
    stand_in.write_text(
        f"""#!/bin/sh
case $1 in
  -V) echo Python {version};;
  -m) echo "$*" >> made;;
  -c) exec '{sys.executable}' -c "import sys; sys.version_info = ({numbers}); exec(sys.argv[1])" "$2";;
esac
"""
    )
    stand_in.chmod(0o755)
    shutil.copy(ROOT / "Makefile", tmp_path)
    make = ["make", "-s", ".venv/bin/python", f"PYTHON={stand_in}"]
    environment = {name: value for name, value in os.environ.items() if "MAKE" not in name}  # of `make test`
    done = subprocess.run(make, cwd=tmp_path, env=environment, capture_output=True, text=True)
    if version in ("3.11.2", "3.14.0"):
        assert (done.returncode, done.stderr) == (0, "")
        assert (tmp_path / "made").read_text() == "-m venv .venv\n"
        return
    assert done.returncode != 0
    assert done.stderr.splitlines()[0] == (
        f"error: {stand_in} is Python {version}; 3.11 to 3.14 is needed: make PYTHON=/path/to/python3.12"
    )
    assert not (tmp_path / "made").exists()
