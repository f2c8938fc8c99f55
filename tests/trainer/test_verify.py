"""Shards that other tools or hands described, or nobody, are verified too."""

import json

import pytest
from foreign import pairs, put
from pictures import encoded, tar

from trainer.shards import Sample, write_shards


def test_verify_reads_shards_of_other_tools(tmp_path, command, capsys):
    """As training reads them: with labels by name, several formats, and whatever stands beside the images."""
    second = pairs("bee", first=2) | {"002.json": b"{}"}
    put(tmp_path, {"train/0.tar": pairs(0, 1), "train/1.tar": second, "val.tar": pairs(2)})
    assert command("--verify", tmp_path, "--workers", 1) == 0
    assert capsys.readouterr().out == "4 images read, all is well\n"
    tar(pairs(0, 1, first=5) | {"006.jpg": encoded(6)[:-200], "7.jpg": encoded(7)}, tmp_path / "train/2.tar")
    assert command("--verify", tmp_path, "--workers", 1, "--split", "train") == 1
    first, second, total = capsys.readouterr().out.splitlines()
    assert first.startswith("train/2.tar: 006: ")
    assert second == "train/2.tar: 1 samples lack an image or a class, such as 7 has jpg"
    assert total == "5 images read, 2 problems"
    assert command("--verify", tmp_path, "--split", "test") == 2
    assert command("--verify", f"{tmp_path}/{{train/{{0..1}},val}}.tar", "--workers", 1) == 0


@pytest.mark.parametrize("checksums", [True, False])
def test_verify_needs_no_classes_in_meta_json(tmp_path, command, capsys, checksums):
    write_shards([Sample("a", encoded(0), 0), Sample("b", encoded(1), 1)], tmp_path, "train", ["x", "y"], "test")
    meta = json.loads((tmp_path / "meta.json").read_text())
    del meta["classes"]
    if not checksums:  # as written by hand
        meta["splits"]["train"]["shards"] = {"train-000000.tar": {"samples": 2}}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    assert command("--verify", tmp_path, "--workers", 1) == 0
    assert capsys.readouterr().out == "2 images read, all is well\n"
    (tmp_path / "classes.json").write_text('["x"]')
    assert command("--verify", tmp_path, "--workers", 1) == 1
    assert "b has label 1: 1 classes are named" in capsys.readouterr().out
