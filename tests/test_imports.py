"""Imports go one way: regularizers ← trainer ← sweeps, and each outside system has one home."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    "regularizers": {"trainer", "sweeps", "ray", "optuna", "mlflow", "webdataset", "numpy", "PIL"},
    "trainer": {"sweeps", "optuna"},
    "sweeps": {"webdataset"},
}
HOMES = {
    "webdataset": {"trainer/shards/tar.py", "trainer/shards/write.py"},
    "mlflow": {
        "sweeps/tracking/model.py",
        "sweeps/tracking/runs.py",
        "sweeps/tracking/server.py",
        "sweeps/tracking/upload.py",
        "trainer/evaluate/subject.py",
    },  # records; loads a registered model
}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0]


def test_imports_go_one_way():
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for package, forbidden in FORBIDDEN.items()
        for path in (ROOT / package).rglob("*.py")
        for name in set(imports(path)) & forbidden
    ]
    assert not wrong


def test_each_outside_system_has_one_home():
    for system, homes in HOMES.items():
        users = {
            str(path.relative_to(ROOT))
            for package in FORBIDDEN
            for path in (ROOT / package).rglob("*.py")
            if system in imports(path)
        }
        assert users == homes


@pytest.mark.parametrize(
    "package", ["trainer", "trainer/shards", "trainer/evaluate", "sweeps", "sweeps/tracking", "sweeps/report"]
)
def test_a_package_lists_its_files(package):
    listed = set(re.findall(r"\w+", ast.get_docstring(ast.parse((ROOT / package / "__init__.py").read_text()))))
    assert {path.stem for path in (ROOT / package).glob("*.py")} - {"__init__", "__main__"} <= listed
