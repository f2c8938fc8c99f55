"""The package and its tests need no more than torch, jaxtyping and pytest."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# As if there were nothing installed but the three and what they require.
SITE = """
import importlib.machinery, importlib.metadata, re, sys

def closure(names):
    found = set()
    while names:
        name = re.sub(r"[-_.]+", "-", names.pop()).lower()
        try:
            requires = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        if name not in found:
            found.add(name)
            names += [re.match(r"[\\w.-]+", one)[0] for one in requires if "extra ==" not in one]
    return found

allowed = closure(["torch", "jaxtyping", "pytest"])
modules = {
    module for module, owners in importlib.metadata.packages_distributions().items()
    if not allowed & {re.sub(r"[-_.]+", "-", owner).lower() for owner in owners}
}

modules.discard("regularizers")  # its owner needs much more
assert {"numpy", "hypothesis", "beartype", "matplotlib", "boto3"} <= modules

class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in modules else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Finder
"""


def run(folder, *words, **more):
    (folder / "sitecustomize.py").write_text(SITE)
    environment = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True, **more)


def test_a_penalty_takes_torch_and_jaxtyping(tmp_path):
    done = run(tmp_path, "-W", "ignore", "-c", "import torch; from regularizers import REGULARIZERS, Forward; "
               "print(sorted(REGULARIZERS['ssim']().distance(*torch.rand(2, 2, 3, 16, 16)).shape))")  # fmt: skip
    assert (done.stdout, done.stderr) == ("[2]\n", "")


@pytest.mark.slow
def test_so_do_the_tests_of_regularizers(tmp_path):
    tests = [str(file) for file in Path(__file__).parent.glob("test_*.py") if file != Path(__file__)]
    done = run(tmp_path, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not slow", *tests, timeout=580)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
