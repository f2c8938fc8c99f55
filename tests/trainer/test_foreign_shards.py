"""Shards that other tools wrote: found where they lie, read as their writers meant, or refused in one line."""

import bz2
import gzip
import io
import json
import lzma
import shutil
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from pictures import encoded, tar

from trainer.cache import ShardCache
from trainer.config import UsageError
from trainer.data import eval_loader, train_loader
from trainer.normalization import IMAGENET
from trainer.preprocess import Transform
from trainer.shards import MissingSplit, Sample, evaluation_splits, read_shards, skipped_samples, write_shards
from trainer.shards.layout import of_split

CLASSES = ["ant", "bee", "cat"]


def pairs(*labels, first=0):
    """Members of samples with these labels, keys counted on from `first`."""
    files = {}
    for number, label in enumerate(labels, start=first):
        files |= {f"{number:03d}.jpg": encoded(number), f"{number:03d}.cls": str(label).encode()}
    return files


def put(folder, shards, classes=CLASSES):
    """Write shards (name → members) and classes.json."""
    for name, files in shards.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        tar(files, folder / name)
    if classes is not None:
        (folder / "classes.json").write_text(json.dumps(classes))
    return folder


def read(shards, cache=None):
    """Labels in order of evaluation; training reads the same samples."""
    with eval_loader(
        shards, Transform(16, train=False), IMAGENET, rank=0, world_size=1, batch_size=2, cache=cache
    ) as loader:
        batches = list(loader.epoch())
    assert all(batch.images.isfinite().all() for batch in batches)
    labels = [int(label) for batch in batches for label in batch.labels]
    with train_loader(
        shards,
        Transform(16, train=True),
        IMAGENET,
        rank=0,
        world_size=1,
        seed=0,
        steps=len(labels),
        batch_size=1,
        cache=cache,
    ) as loader:
        assert sorted(int(label) for batch in loader.epoch() for label in batch.labels) == sorted(labels)
    return labels


def refusal(location, split="train"):
    with pytest.raises(UsageError) as refused:
        read_shards(location, split)
    assert "\n" not in str(refused.value)
    return str(refused.value)


# Where shards lie


@pytest.mark.parametrize(
    ("train", "val"),
    [
        (["train-000000.tar", "train-000001.tar"], ["val-000000.tar"]),
        (["imagenet1k-train-0000.tar", "imagenet1k-train-0001.tar"], ["imagenet1k-validation-00.tar"]),
        (["imagenet-train-000000.tar", "imagenet-train-000001.tar"], ["imagenet-val-000000.tar"]),
        (["train/0.tar", "train/1.tar"], ["validation/0.tar"]),
        (["train/shard_9.tar", "train/shard_10.tar"], ["valid/shard_0.tar"]),
        (["a_train_1-of-2.tar.gz", "a_train_2-of-2.tgz"], ["a_valid_1-of-1.TAR"]),
        (["Training.00.tar", "Training.01.tar"], ["val.tar"]),
    ],
    ids=lambda names: names[0],
)
def test_published_layouts_are_found(tmp_path, train, val):
    put(tmp_path, {train[0]: pairs(0, 1), train[1]: pairs(2, first=2), val[0]: pairs(1, 1, first=3)})
    found = read_shards(tmp_path, "train")
    assert [path.removeprefix(f"{tmp_path}/") for path in found.paths] == train
    assert read(found) == [0, 1, 2]
    assert read(read_shards(tmp_path, "val")) == [1, 1]
    with pytest.raises(MissingSplit):
        read_shards(tmp_path, "test")
    assert [split.total for split in evaluation_splits(tmp_path)] == [1, 1]


def test_shards_come_in_natural_order_and_ours_before_others():
    names = ["train-10.tar", "train-9.tar", "train-010.tar", ".train-1.tar", "._train-9.tar", "train-1.tar.part"]
    assert of_split(names, "train") == ["train-9.tar", "train-010.tar", "train-10.tar"]
    assert of_split(["old-train-0.tar", "train-0.tar"], "train") == ["train-0.tar"]
    assert of_split(["trainval-0.tar", "constrain-0.tar", "0.tar"], "train") == []


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("{train,val}/{0..1}.tar", ["train/0.tar", "train/1.tar", "val/0.tar", "val/1.tar"]),
        ("a-{train-{0000..0001},validation-{00..01}}.tar",
         ["a-train-0000.tar", "a-train-0001.tar", "a-validation-00.tar", "a-validation-01.tar"]),
    ],
)  # fmt: skip
def test_braces_choose_shards_of_several_folders(tmp_path, pattern, names):
    put(tmp_path, {name: pairs(number, first=number) for number, name in enumerate(names[:3])})
    tar(pairs(0, first=9), tmp_path / names[3])
    shutil.copy(tmp_path / names[0], tmp_path / "train-000007.tar")  # not asked for
    given = f"{tmp_path}/{pattern}"
    assert read_shards(given, "train").paths == tuple(f"{tmp_path}/{name}" for name in names[:2])
    assert read(read_shards(given, "val")) == [2, 0]
    (tmp_path / names[1]).unlink()
    assert f"missing ['{names[1]}']" in refusal(given)


def test_shards_of_one_split_in_two_folders_are_refused(tmp_path):
    put(tmp_path, {"training/0.tar": pairs(0), "train/0.tar": pairs(1)})
    assert "2 folders with train shards" in refusal(tmp_path)


@pytest.fixture
def web(tmp_path):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_remote_shards_are_read_where_meta_json_counts_them(web, tmp_path, tmp_path_factory):
    put(tmp_path, {"train/0.tar": pairs(0, 1), "train/1.tar": pairs(2, first=2), "val/0.tar": pairs(1, first=3)})
    for location in (f"{web}/{{train/{{0..1}},val/0}}.tar", web):
        message = refusal(location)
        assert "no meta.json there counts the train images" in message
        assert "copy" in message
    meta = {"splits": {"train": {"shards": {"train/0.tar": {"samples": 2}, "train/1.tar": {"samples": 1}}}}}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    cache = ShardCache(str(tmp_path_factory.mktemp("cache")))
    for location in (f"{web}/{{train/{{0..1}},val/0}}.tar", web):
        assert read(read_shards(location, "train"), cache) == [0, 1, 2]
    assert "names no val shards" in refusal(web, "val")


# What is in them


def test_empty_shards_and_halves_of_samples_are_skipped_alike(tmp_path):
    halves = {"7.jpg": encoded(7), "8.cls": b"1", "9.jpg": encoded(9), "9.json": b"{}"}
    for split in ("train", "val"):
        put(tmp_path, {f"{split}-0.tar": {}, f"{split}-1.tar": pairs(0, 1) | halves, f"{split}-2.tar": halves,
                       f"{split}-3.tar": pairs(2, first=4)})  # fmt: skip
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
    (batch,) = eval_loader(shards, Transform(16, train=False), IMAGENET, rank=0, world_size=1, batch_size=2).epoch()
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


@pytest.mark.parametrize("name", ["train-0.tar.gz", "train-0.tgz", "train-0.tar"])
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


# What stands beside them


@pytest.mark.parametrize(
    "meta",
    [
        [{"url": "train-0.tar", "nsamples": 2}],
        {"shardlist": [{"url": "train-0.tar", "nsamples": 2}]},
        {"splits": {"train": {"filenames": ["train-0.tar"], "shard_lengths": [2]}}},
        {"splits": {"train": {"shards": [{"samples": 2}]}}},
        {"splits": {"train": {"shards": {"train-0.tar": 2}}}},
        {"splits": {"train": {"shards": {"train-0.tar": {"samples": "2"}}}}},
        {"splits": {"train": {"shards": {"train-0.tar": {"samples": -2}}}}},
        {"splits": {"train": {"shards": {"train-0.tar": {"samples": 2, "sha256": 7}}}}},
        {"splits": ["train"]},
        {"classes": 3, "splits": {}},
        7,
        "text",
    ],
    ids=json.dumps,
)
def test_another_tools_meta_json_is_one_line(tmp_path, command, capsys, meta):
    put(tmp_path, {"train-0.tar": pairs(0, 1)})
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    refused = refusal(tmp_path)
    assert refused.startswith(f"{tmp_path}/meta.json: ")
    assert "python -m trainer.shards" in refused or "list of the class names" in refused
    with pytest.raises(UsageError, match=r"meta\.json"):
        write_shards([Sample("a", encoded(0), 0)], tmp_path, "val", CLASSES, "test")
    assert command("--verify", tmp_path) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("name", ["meta.json", "classes.json"])
@pytest.mark.parametrize("content", [b"", b'["a", "b"', b"<html>", '["ä"]'.encode("latin-1"), b"[" * 100_000])
def test_a_damaged_json_file_is_one_line(tmp_path, name, content):
    put(tmp_path, {"train-0.tar": pairs(0, 1)})
    (tmp_path / name).write_bytes(content)
    assert refusal(tmp_path).startswith(f"{tmp_path}/{name}: is no JSON in UTF-8")


@pytest.mark.parametrize(
    "content",
    [
        ["ant", "bee", "cat"],
        {"0": "ant", "1": "bee", "2": "cat"},
        {"2": "cat", "0": "ant", "1": "bee"},
        {"cat": 2, "ant": 0, "bee": 1},
        {"0": ["ant", "an insect"], "1": ["bee", "another"], "2": ["cat", "no insect"]},
    ],
    ids=json.dumps,
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_class_names_are_read_from_any_form_that_says_them(tmp_path, content, encoding):
    put(tmp_path, {"train-0.tar": pairs(0, 1)})
    (tmp_path / "classes.json").write_text(json.dumps(content), encoding=encoding)
    assert read_shards(tmp_path, "train").classes == ("ant", "bee", "cat")


@pytest.mark.parametrize(
    "content",
    [3, [], {}, "ant", [0, 1, 2], ["ant", None], {"1": "ant", "2": "bee"}, {"ant": 1, "bee": 2}, {"ant": 0, "bee": 0},
     {"a": "ant"}, {"0": "ant", "zero": "bee"}, {"0": {"name": "ant"}}, {"classes": ["ant"]}, [["ant"], []], True],
    ids=json.dumps,
)  # fmt: skip
def test_a_classes_json_that_names_no_classes_is_one_line(tmp_path, content):
    put(tmp_path, {"train-0.tar": pairs(0)}, classes=content)
    refused = refusal(tmp_path)
    assert refused.startswith(f"{tmp_path}/classes.json: ")
    assert "give a JSON list of the class names" in refused
