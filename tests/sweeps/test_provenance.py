"""Where a sweep's numbers come from."""

import dataclasses
import json
import re
import shutil
import subprocess

import pytest
import torch

from sweeps import provenance as module
from sweeps.provenance import dataset, provenance, source
from sweeps.settings import Sweep
from trainer.config import Trial

UNITS = {"l2": 2.0, "tv": 10.0}


@pytest.fixture
def sweep(tmp_path):
    trial = Trial(data=str(tmp_path), model="resnet8")
    return Sweep(name="s", storage=str(tmp_path), trial=trial, regularizers=("l2", "tv"))


def test_the_space_is_in_absolute_weights(sweep):
    def space(**changes):
        return json.loads(provenance(dataclasses.replace(sweep, **changes), UNITS)["search_space.json"])

    assert space() == {"l2": [0.2, 2000.0], "tv": [1.0, 10000.0]}
    assert space(strengths=(3.0,)) == {"l2": [6.0], "tv": [30.0]}
    assert space(trial=dataclasses.replace(sweep.trial, weight=0.5)) == {"l2": [0.5], "tv": [0.5]}


def test_the_data_are_an_input_that_changes_with_them(digits, tmp_path):
    one = dataset(str(digits))
    assert (one["name"], one["source_type"], json.loads(one["source"])) == ("digits", "local", {"uri": str(digits)})
    assert json.loads(one["profile"]) == {"train": 1258, "val": 359, "test": 180, "classes": 10}
    other = shutil.copytree(digits, tmp_path / "other")
    assert dataset(f"{other}/")["name"] == "other"
    assert dataset(str(other))["digest"] == one["digest"], "wherever they lie"
    meta = json.loads((other / "meta.json").read_text())
    next(iter(meta["splits"]["train"]["shards"].values()))["sha256"] = "0" * 64
    (other / "meta.json").write_text(json.dumps(meta))
    assert dataset(str(other))["digest"] != one["digest"]


def test_mlflow_hears_who_ran_what(monkeypatch):
    monkeypatch.setattr(module, "code_version", lambda: "commit abc-dirty")
    monkeypatch.setenv("LOGNAME", "me")
    assert source() == {
        "mlflow.source.name": "sweeps/all_regularizers.py", "mlflow.source.type": "LOCAL",
        "mlflow.user": "me", "mlflow.source.git.commit": "abc-dirty",
    }  # fmt: skip
    monkeypatch.setattr(module, "code_version", lambda: "commit unknown")
    assert "mlflow.source.git.commit" not in source()


def test_the_environment_can_be_had_again(sweep):
    text = provenance(sweep, UNITS)["environment.txt"]
    assert f"torch=={torch.__version__}" in text.splitlines()
    assert text.splitlines()[1].startswith("python 3.")


def test_the_commit_says_whether_files_differ(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert module.code_version() == "commit unknown"
    (tmp_path / "file").write_text("1")
    for words in (("init", "-q"), ("add", "file"), ("commit", "-q", "-m", "one"), ("tag", "v1")):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=tmp_path, check=True)
    assert re.fullmatch("commit [0-9a-f]{40}", module.code_version())
    (tmp_path / "file").write_text("2")
    assert module.code_version().endswith("-dirty")
