"""Shards that other tools wrote, and what lies beside them: found where they are, or refused in one line."""

import json
import shutil
import tarfile
from http.server import SimpleHTTPRequestHandler

import pytest
from foreign import CLASSES, pairs, put, read, refusal
from pictures import encoded, tar
from web import served

from trainer.cache import ShardCache
from trainer.config import UsageError
from trainer.shards import MissingSplit, Sample, evaluation_splits, read_shards, skipped_samples, write_shards
from trainer.shards.layout import of_split


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
    with served(SimpleHTTPRequestHandler, directory=tmp_path) as address:
        yield address


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


def test_a_folder_may_have_braces_in_its_name(tmp_path):
    for name in ("run{1,2}", "{set}", "half{"):
        put(tmp_path / name, {"train-0.tar": pairs(0, 1)})
        assert read_shards(tmp_path / name, "train").total == 2
    assert read_shards(f"{tmp_path}/{{set}}/train-{{0..0}}.tar", "train").total == 2


@pytest.mark.parametrize("name", ["{shards", "shards}{", "{a}", "train-{0..1.tar", "{{a,b}"])
def test_braces_that_name_nothing_are_one_line(tmp_path, name):
    assert "no such folder" in refusal(tmp_path / name)


@pytest.mark.parametrize("ending", ["tar.zst", "tzst", "tar.lz4", "tar.lz", "tar.Z"])
@pytest.mark.parametrize("beside", [True, False])
def test_shards_that_cannot_be_unpacked_are_refused_and_not_passed_over(tmp_path, ending, beside):
    magic = {"s": b"\x28\xb5\x2f\xfd", "4": b"\x04\x22\x4d\x18", "z": b"LZIP", "Z": b"\x1f\x9d"}
    put(tmp_path, {"train-0.tar": pairs(0)} if beside else {})
    content = magic["s" if "zs" in ending else ending[-1]] + bytes(600)
    (tmp_path / f"train-1.{ending}").write_bytes(content)
    refused = refusal(tmp_path)
    assert f"train-1.{ending}: is compressed by " in refused
    assert "unpack it with" in refused


def test_shards_of_another_layout_beside_ours_are_named(tmp_path):
    put(
        tmp_path, {"train-0.tar": pairs(0), "imagenet-train-1.tar": pairs(1, first=1), "train/1.tar": pairs(1, first=2)}
    )
    put(tmp_path, {"val-0.tar": pairs(2, first=3)})
    train, val = (read_shards(tmp_path, split) for split in ("train", "val"))
    assert train.counts == (1,)
    assert skipped_samples("here", train, val) == (
        "here: ['imagenet-train-1.tar', 'train/1.tar'] left out, as train is taken from the shards named train-*"
    )


@pytest.mark.parametrize("ours", [True, False])
def test_a_shard_of_train_that_is_in_val_too_is_named(tmp_path, ours):
    samples = [Sample(str(number), encoded(number), number % 2) for number in range(4)]
    write_shards(samples[:3], tmp_path, "train", CLASSES, "test", per_shard=1)
    write_shards(samples[2:], tmp_path, "val", CLASSES, "test", per_shard=1)
    if not ours:
        (tmp_path / "meta.json").unlink()
        put(tmp_path, {})
    train, evaluated = read_shards(tmp_path, "train"), evaluation_splits(tmp_path)
    name = tmp_path.name
    assert skipped_samples("here", train, *evaluated) == (
        f"here: {name}/train-000002.tar and {name}/val-000000.tar are the same file, so the splits share images"
    )
    assert skipped_samples("here", *evaluated) == ""


def test_missing_and_empty_shards_are_refused(tmp_path, digits):
    with pytest.raises(UsageError, match="no such folder"):
        read_shards(tmp_path / "nowhere", "train")
    with pytest.raises(UsageError, match=r"no train-\*\.tar"):
        read_shards(tmp_path, "train")
    with pytest.raises(UsageError, match="no image to write"):
        write_shards([], tmp_path, "train", ["a"], "nothing")
    with tarfile.open(tmp_path / "train-000000.tar", "w"):
        pass
    with pytest.raises(UsageError, match="hold no image"):
        read_shards(tmp_path, "train")


def test_a_lost_shard_is_named(tmp_path):
    samples = [Sample(str(i), b"x", 0) for i in range(4)]
    write_shards(samples, tmp_path, "train", ["a"], "test", per_shard=2)
    (tmp_path / "train-000001.tar").unlink()
    with pytest.raises(UsageError, match="train-000001"):
        read_shards(tmp_path, "train")
