"""A shard is whole or absent, and meta.json describes it."""

import json

import pytest
from pictures import contents, tree

from trainer.config import UsageError
from trainer.shards import Sample, write_shards
from trainer.shards.make import Settings, make_shards
from trainer.shards.sources import class_folders


def test_meta_describes_what_was_written(digits):
    meta = json.loads((digits / "meta.json").read_text())
    assert meta["classes"] == [str(i) for i in range(10)]
    assert {split: sum(s["samples"] for s in m["shards"].values()) for split, m in meta["splits"].items()} == {
        "train": 1258,
        "val": 359,
        "test": 180,
    }
    assert not list(digits.glob(".*"))


def test_a_shard_that_fails_midway_leaves_the_old_one(tmp_path):
    def failing():
        yield Sample("a", bytes(100_000), 0)
        assert contents(tmp_path)["train-000000.tar"] == before
        raise UsageError("no more")

    write_shards([Sample("b", b"x", 0)], tmp_path, "train", ["a"], "test")
    everything = contents(tmp_path)
    before = everything["train-000000.tar"]
    with pytest.raises(UsageError, match="no more"):
        write_shards(failing(), tmp_path, "train", ["a"], "test")
    assert contents(tmp_path) == everything


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(UsageError, match="cannot"):
            write_shards([Sample("b", b"x", 0)], folder, "train", ["a"], "test")
        with pytest.raises(UsageError, match="cannot"):
            make_shards(class_folders(tree(tmp_path / "in" / folder.name)), str(folder), "train", Settings())
