"""Which cluster is joined, and the scripts as `ray submit` brings them."""

import shutil
import socket
from pathlib import Path

import pytest

from sweeps import cluster
from trainer.config import UsageError

ROOT = Path(__file__).parents[2]


def test_a_cluster_is_joined_where_one_is_named_or_was_started(monkeypatch):
    monkeypatch.setattr(cluster, "read_ray_address", lambda: "10.0.0.1:6379")
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert cluster.address() is None
    assert cluster.where() == "starting Ray"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.2:6379")
    assert cluster.address() == "10.0.0.2:6379"
    monkeypatch.delenv("RAY_ADDRESS")
    assert cluster.address() == "10.0.0.1:6379"
    assert "joining the Ray cluster at 10.0.0.1:6379 with the code in" in cluster.where()


def test_a_cluster_that_is_gone_is_named(monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        there = f"127.0.0.1:{unused.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", there)
    with pytest.raises(UsageError, match=f"RAY_ADDRESS names a Ray cluster at {there}; it does not answer"):
        cluster.check_answers(there)


def test_the_code_is_shipped_but_once_and_nothing_else(monkeypatch):
    shipped = cluster._shipped()
    assert shipped["working_dir"] == str(ROOT)
    assert {path.name for path in ROOT.iterdir()} - {name[1:] for name in shipped["excludes"]} == set(cluster.PACKAGES)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"runtime_env": {"working_dir": "gcs://code.zip"}}')
    assert "working_dir" not in cluster._shipped()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["all_regularizers.py", "resume_best.py"])
def test_a_script_that_was_submitted_finds_its_project_but_refuses_an_older_one(name, script, tmp_path):
    (tmp_path / "heatmap-sweeps").symlink_to(ROOT)
    copy = tmp_path / name
    shutil.copy(ROOT / "sweeps" / name, copy)
    arguments = [] if name == "all_regularizers.py" else ["--name", "nothing"]
    status, out, err = script(copy, "--help", HOME=str(tmp_path))
    assert (status, err) == (0, "")
    copy.write_text(copy.read_text() + "# edited\n")
    status, out, err = script(copy, *arguments, HOME=str(tmp_path))
    assert status == 2
    assert err.startswith(f"error: {copy} is not the {name} of {ROOT}; `ray rsync-up`")
    assert err.count("\n") == 1
