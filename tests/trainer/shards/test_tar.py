"""What is in shards that other tools wrote: read as it was meant, or refused in one line."""

import bz2
import gzip
import io
import json
import lzma
import tarfile

import pytest
from foreign import CLASSES, pairs, put, read, refusal
from pictures import encoded, tar
from streams import options

from trainer.data import eval_loader
from trainer.preprocess import Transform
from trainer.shards import Sample, evaluation_splits, read_shards, skipped_samples, write_shards


def test_empty_shards_and_halves_of_samples_are_skipped_alike(tmp_path):
    halves = {"7.jpg": encoded(7), "8.cls": b"1", "9.jpg": encoded(9), "9.json": b"{}"}
    for split, first in (("train", 0), ("val", 10)):  # of other images
        put(tmp_path, {f"{split}-0.tar": {}, f"{split}-1.tar": pairs(0, 1, first=first) | halves,
                       f"{split}-2.tar": halves, f"{split}-3.tar": pairs(2, first=first + 4)})  # fmt: skip
    train, val = (read_shards(tmp_path, split) for split in ("train", "val"))
    assert train.counts == val.counts == (2, 1)
    assert read(train) == read(val) == [0, 1, 2]
    assert skipped_samples("here", train, val) == (
        "here: samples without an image or without a class are left out (6 of train, 6 of val)"
    )
    assert "(6 of val)" in skipped_samples("here", *evaluation_splits(tmp_path))
    assert skipped_samples("here", read_shards(put(tmp_path / "b", {"val-0.tar": pairs(1)}), "val")) == ""


def test_a_shard_that_meta_json_says_is_empty_is_passed_over(tmp_path):
    samples = [Sample("a", encoded(1), 0), Sample("b", encoded(2), 1)]
    write_shards(samples, tmp_path, "train", CLASSES, "test", per_shard=1)
    tar({}, tmp_path / "train-000002.tar")
    meta = json.loads((tmp_path / "meta.json").read_text())
    meta["splits"]["train"]["shards"]["train-000002.tar"] = {"samples": 0}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    assert read(read_shards(tmp_path, "train")) == [0, 1]


@pytest.mark.parametrize(
    "members",
    [
        {"0.webp": ("WEBP", 0), "0.cls": 0, "1.webp": ("WEBP", 1), "1.cls": 1},
        {"0.JPEG": 0, "0.CLS": 0, "1.PNG": ("PNG", 1), "1.Cls": 1},
        {"0.jpg": 0, "1.jpg": 1, "1.cls": 1, "0.cls": 0},  # not side by side
        {"0.cls": 0, "1.cls": 1, "1.jpg": 1, "0.jpg": 0},
        {"a.0.jpg": 0, "a.0.cls": 0, "a.1.jpg": 1, "a.1.cls": 1},  # one key in webdataset's eyes
        {"n1_0.JPEG": 0, "n1_0.JPEG.cls": 0, "n1_1.JPEG.jpg": 1, "n1_1.cls": 1},
        {"0.jpg": 0, "0.seg.png": ("PNG", 3), "0.json": b"{}", "0.cls": 0, "1.jpg": 1, "1.cls": 1},
        {"0.jpg": 0, "0.cls.txt": b"0\n", "1.jpg": 1, "1.cls": b" 1 "},
        {"./x.y/0.jpg": 0, "x.y/0.cls": 0, "x.z/0.jpg": 1, "x.z/0.cls": 1},
        {"0.jpg": 0, "._0.jpg": b"mac", "._0.cls": b"mac", "0.cls": 0, "__MACOSX/1.jpg": b"mac",
         "PaxHeader/1.jpg": b"30 mtime", "1.jpg": 1, "1.cls": 1, "LICENSE": b"", ".DS_Store": b""},
        {"0.jpg": 0, "0.cls": 0, "0.pyd": b"cos\n", "1.jpg": 1, "1.cls": 1},
        {"ant/._0.jpg": b"mac", "ant/0.jpg": 0, "ant/._0.cls": b"0", "ant/0.cls": 0, "./bee/.old.1.jpg": b"",
         "./bee/1.jpg": 1, "./bee/1.cls": 1, "./bee/._1.jpg": b"mac", "bee/.x.cls": b"0"},
    ],
    ids=lambda members: ",".join(members)[:40],
)  # fmt: skip
def test_members_of_all_kinds_are_paired(tmp_path, members):
    files = {}
    for name, content in members.items():
        if isinstance(content, int):
            content = str(content).encode() if "cls" in name.lower() else encoded(100 * content)
        files[name] = encoded(100 * content[1], content[0]) if isinstance(content, tuple) else content
    put(tmp_path, {"train-0.tar": files})
    shards = read_shards(tmp_path, "train")
    assert shards.skipped == 0
    assert read(shards) == [0, 1]
    (batch,) = eval_loader(shards, Transform(16, train=False), options(2)).epoch()
    red = batch.images[:, 0].mean((1, 2))
    assert red[0] + 1 < red[1]  # each label has its own image


def test_a_key_that_comes_again_is_another_sample_as_in_webdataset(tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for key, label in (("0", 0), ("1", 1), ("0", 2)):
            for name, data in ((f"{key}.jpg", encoded(label)), (f"{key}.cls", str(label).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    put(tmp_path, {})
    (tmp_path / "train-0.tar").write_bytes(buffer.getvalue())
    assert read(read_shards(tmp_path, "train")) == [0, 1, 2]


@pytest.mark.parametrize("name", ["train-0.tar.gz", "train-0.tgz", "train-0.tar", "train-0.tar.bz2", "train-0.TXZ"])
@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_compressed_shards_are_read_whatever_their_names(tmp_path, name, compress):
    put(tmp_path, {name: pairs(0, 1, 2)})
    (tmp_path / name).write_bytes(compress((tmp_path / name).read_bytes()))
    assert read(read_shards(tmp_path, "train")) == [0, 1, 2]
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    assert f"{name}: damaged, cannot be decompressed" in refusal(tmp_path)


def link(kind):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in pairs(0, 1).items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            if name == "001.cls":
                member.type, member.linkname, member.size = kind, "000.cls", 0
            archive.addfile(member, io.BytesIO(data) if member.size else None)
    return buffer.getvalue()


def twice():
    first, second = tar(pairs(0, 1)), tar({"001.cls": b"1"})
    return first[: first.rindex(b"001.cls")] + first[first.rindex(b"001.cls") :][:1024] + second


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is an empty file"),
        (b"<!DOCTYPE html>" * 100, "not a readable tar file: it starts with b'<!DOCTYPE html>"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "not a readable tar file: it starts with b'version https://"),
        (tar(pairs(0, 1, 2))[: 5 * 1024], "damaged after 2 samples"),  # between two samples
        (tar(pairs(0, 1, 2))[: 6 * 1024], "damaged after 2 samples"),
        (tar(pairs(0)) + tar(pairs(1, first=1)), "but the file goes on"),
        (bytes(1 << 21), "but the file goes on"),
        (b"\x28\xb5\x2f\xfd" + bytes(600), "is compressed by Zstandard"),
        (tar(pairs(0) | {"9.gif": b"GIF89a", "9.cls": b"1"}), "9.gif is not of a format that is read (jpg"),
        (link(tarfile.LNKTYPE), "001.cls is a link"),
        (link(tarfile.SYMTYPE), "001.cls is a link"),
        (twice(), "001.cls is there twice"),
    ],
    ids=lambda value: None if isinstance(value, bytes) else value[:20],
)  # fmt: skip
def test_shards_that_cannot_be_read_rightly_are_named(tmp_path, content, message):
    put(tmp_path, {"train-0.tar": pairs(0)})
    (tmp_path / "train-1.tar").write_bytes(content)
    refused = refusal(tmp_path)
    assert f"{tmp_path}/train-1.tar: " in refused
    assert message in refused


@pytest.mark.parametrize("length", range(0, 12 * 1024, 512))
def test_no_cut_of_a_shard_passes_for_a_shorter_one(tmp_path, length):
    whole = tar(pairs(0, 1))
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 1024  # first block of the end's zeros
    put(tmp_path, {})
    (tmp_path / "train-0.tar").write_bytes(whole[:length])
    if length < end:
        assert "train-0.tar" in refusal(tmp_path)
    else:
        assert read_shards(tmp_path, "train").counts == (2,)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"0.jpg": encoded(0), "0.json": b'{"label": 1}'}, "0 has jpg, json; a sample is KEY.jpg and KEY.cls"),
        ({"0.npy": b"", "0.cls": b"1"}, "0 has npy, cls"),
        ({"n01440764.tar": b""}, "n01440764 has tar"),
    ],
)
def test_a_split_without_a_sample_says_what_is_there_instead(tmp_path, files, message):
    put(tmp_path, {"train-0.tar": files})
    refused = refusal(tmp_path)
    assert "hold no image with a class: in train-0.tar" in refused
    assert message in refused


@pytest.mark.parametrize("name", ["train-000000 (1).tar", "train-000005.tar", "train-000000.tar.gz"])
def test_a_second_copy_of_a_shard_is_named(tmp_path, name):
    put(tmp_path, {"train-000000.tar": pairs(0, 1), "train-000001.tar": pairs(2, 1, first=2)})
    copy = (tmp_path / "train-000000.tar").read_bytes()
    (tmp_path / name).write_bytes(gzip.compress(copy) if name.endswith("gz") else copy)
    refused = refusal(tmp_path)
    assert "is a second copy of" in refused
    assert name in refused


def test_shards_that_each_count_their_keys_from_0_are_no_copies(tmp_path):
    image, other = encoded(1), encoded(2)
    assert len(image) == len(other)
    put(tmp_path, {"train-0.tar": {"0.jpg": image, "0.cls": b"1"}, "train-1.tar": {"0.jpg": other, "0.cls": b"1"}})
    assert read(read_shards(tmp_path, "train")) == [1, 1]


def test_a_folder_is_scanned_once_until_a_shard_changes(tmp_path, monkeypatch):
    opened = []
    original = tarfile.open
    monkeypatch.setattr(tarfile, "open", lambda *a, **k: opened.append(1) or original(*a, **k))
    put(tmp_path, {"train-0.tar": pairs(0), "train-1.tar": pairs(1, first=1)})
    opened.clear()
    assert [read_shards(tmp_path, "train").total for _ in range(3)] == [2, 2, 2]
    assert len(opened) == 2
    tar(pairs(1, 2, 0, first=1), tmp_path / "train-1.tar")
    opened.clear()
    assert read_shards(tmp_path, "train").total == 4
    assert len(opened) == 1
