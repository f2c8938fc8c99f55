"""Shards that other tools or hands described, or nobody, are verified too."""

import json
import tarfile

import pytest
from foreign import pairs, put
from pictures import encoded, tar, tree

from trainer.shards import Sample, write_shards
from trainer.shards.make import Settings, make_shards
from trainer.shards.sources import class_folders


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


def test_verify_names_what_is_broken(tmp_path, command, capsys):
    def verify(*more):
        capsys.readouterr()
        status = command("--verify", tmp_path / "out", "--workers", 1, *more)
        return status, capsys.readouterr().out

    tree(tmp_path / "in")
    make_shards(class_folders(tmp_path / "in"), str(tmp_path / "out"), "train", Settings(per_shard=3))
    assert verify() == (0, "12 images read, all is well\n")
    paths = sorted((tmp_path / "out").glob("*.tar"))
    with tarfile.open(paths[0]) as archive:
        image = next(member for member in archive if member.name.endswith(".jpg"))
    flipped = bytearray(paths[0].read_bytes())
    flipped[image.offset_data] ^= 1  # the first byte of a JPEG
    paths[0].write_bytes(flipped)
    short = paths[1].read_bytes()[:2000]
    paths[1].write_bytes(short)
    paths[2].rename(tmp_path / "out/train-000009.tar")
    status, printed = verify("--split", "train")
    assert status == 1
    lines = printed.splitlines()
    assert f"{paths[0].name}: sha256 differs from meta.json" in lines
    assert any(line.startswith(f"{paths[0].name}: {image.name[:-4]}: neither JPEG, PNG nor WebP") for line in lines)
    assert f"{paths[1].name}: sha256 differs from meta.json" in lines
    assert any(line.startswith(f"{paths[1].name}: ") and "meta.json says 3" in line for line in lines)
    assert f"{paths[2].name}: missing" in lines
    assert "train-000009.tar: not in meta.json" in lines
    assert not any(line.startswith(paths[3].name) for line in lines)
    assert command("--verify", tmp_path / "nowhere") == 2
