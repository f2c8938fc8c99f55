"""Labels are checked before anything is trained on them, and where shards are read; a wrong one is one line."""

import json
import pickle
import re
import struct

import pytest
from pictures import WNIDS, encoded, tar

from trainer.config import UsageError
from trainer.data import LoaderOptions, eval_loader, train_loader
from trainer.normalization import IMAGENET
from trainer.preprocess import Transform
from trainer.shards import Sample, read_shards, write_shards
from trainer.shards.labels import class_index


def folder_of(folder, labels, classes, counted=False):
    """A train and a val shard of these class members; with meta.json, which keeps them from being scanned."""
    members = {}
    for number, label in enumerate(labels):
        members |= {f"{number:03d}.jpg": encoded(number), f"{number:03d}.cls": label}
    for split in ("train", "val"):
        tar(members, folder / f"{split}-000000.tar")
    if classes is not None:
        (folder / "classes.json").write_text(json.dumps(classes))
    if counted:
        shards = {split: {"shards": {f"{split}-000000.tar": {"samples": len(labels)}}} for split in ("train", "val")}
        (folder / "meta.json").write_text(json.dumps({"splits": shards}))
    return folder


def labels_of(shards):
    with eval_loader(shards, Transform(16, train=False), LoaderOptions(normalization=IMAGENET, batch_size=2)) as loader:
        return [int(label) for batch in loader.epoch() for label in batch.labels]


WRONG = [
    (
        [b"0", b"n01440764"],
        r"sample 001 has label 'n01440764': not an integer nor one of the 3 class names; write",
    ),
    ([b"0", b"1.0"], r"sample 001 has label '1.0': not an integer"),
    ([b"0", b""], r"sample 001 has label '': not an integer"),
    ([b"0", pickle.dumps(1)], r"sample 001 has label '\\x80\\x04K\\x01\.': not an integer"),
    ([b"0", struct.pack("<q", 1)], r"sample 001 has label '\\x01\\x00.*': not an integer"),
    ([b"0", b"1 2"], r"sample 001 has label '1 2': not an integer"),
    ([b"0", "²".encode()], r"sample 001 has label '²': not an integer"),
    ([b"0", b"x" * 5000], r"sample 001 has label 'x{40}': not an integer"),
    ([b"0", b"-1"], r"sample 001 has label -1: class indices count from 0"),
    ([b"0", b"999"], r"sample 001 has label 999: 3 classes are named, 0 to 2"),
    ([b"0", b"3"], r"sample 001 has label 3: 3 classes are named, 0 to 2"),
]


@pytest.mark.parametrize(("labels", "message"), WRONG, ids=lambda value: str(value)[:30])
def test_a_wrong_label_is_refused_before_anything_is_read(tmp_path, labels, message):
    folder_of(tmp_path, labels, ["a", "b", "c"])
    for split in ("train", "val"):
        with pytest.raises(UsageError) as refused:
            read_shards(tmp_path, split)
        assert re.fullmatch(rf"{tmp_path}/{split}-000000\.tar: {message}.*", str(refused.value))


@pytest.mark.parametrize(("labels", "message"), [WRONG[0], WRONG[8], WRONG[9]], ids=["name", "negative", "large"])
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_shards_that_meta_json_counts_end_a_reader_with_the_same_line(tmp_path, labels, message, workers):
    folder_of(tmp_path, labels, ["a", "b", "c"], counted=True)
    for split in ("train", "val"):
        shards = read_shards(tmp_path, split)
        options = LoaderOptions(normalization=IMAGENET, batch_size=2, loader_workers=workers)
        if split == "val":
            loader = eval_loader(shards, Transform(16, train=False), options)
        else:
            loader = train_loader(shards, Transform(16, train=True), options, seed=0, steps=1)
        with loader, pytest.raises(UsageError) as refused:
            list(loader.epoch())
        assert re.fullmatch(rf"{tmp_path}/{split}-000000\.tar: {message}.*", str(refused.value))


def test_labels_that_count_from_1_are_told_so(tmp_path):
    folder_of(tmp_path, [b"1", b"3", b"2"], ["a", "b", "c"])
    with pytest.raises(UsageError, match="sample 001 has label 3: labels count from 1 to 3; subtract 1 from each"):
        read_shards(tmp_path, "train")
    folder_of(tmp_path, [b"1", b"2", b"2"], ["a", "b", "c"])
    assert read_shards(tmp_path, "train").total == 3


@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize("classes", [list(WNIDS), {name: index for index, name in enumerate(WNIDS)},
                                     {str(index): [name, "words"] for index, name in enumerate(WNIDS)}])  # fmt: skip
def test_wordnet_ids_that_classes_json_lists_are_their_indices(tmp_path, classes, counted):
    folder_of(tmp_path, [WNIDS[2].encode(), b"n01440764\n", b"1"], classes, counted)
    assert labels_of(read_shards(tmp_path, "val")) == [2, 0, 1]


def test_a_name_of_two_classes_is_no_label():
    assert class_index("shard", "key", b"b", ["crane", "b", "crane"]) == 1
    with pytest.raises(UsageError, match="has label 'crane'"):
        class_index("shard", "key", b"crane", ["crane", "b", "crane"])


@pytest.mark.parametrize(
    ("labels", "classes", "empty"),
    [
        ([b"0", b"2", b"4"], list("abcdefg"), ("b", "d", "f", "g")),
        ([b"1", b"2", b"3"], list("abcd"), ("a",)),  # they count from 1, and the list is one too long
        ([b"0", b"b", b"2"], list("abc"), ()),
    ],
)
def test_classes_without_a_sample_are_known(tmp_path, labels, classes, empty):
    folder_of(tmp_path, labels, classes)
    assert read_shards(tmp_path, "train").empty == empty


@pytest.mark.parametrize("file", ["classes.json", "meta.json"])
def test_a_name_twice_is_refused(tmp_path, file):
    folder_of(tmp_path, [b"0", b"1", b"2"], None)
    names = ["crane", "b", "crane"]
    (tmp_path / file).write_text(json.dumps(names if file == "classes.json" else {"classes": names}))
    with pytest.raises(UsageError, match=f"{file}: names 'crane' more than once; give a JSON list"):
        read_shards(tmp_path, "train")
    imagenet = [*(f"{number}" for number in range(998)), "crane", "crane"]  # as it is published
    (tmp_path / file).write_text(json.dumps(imagenet if file == "classes.json" else {"classes": imagenet}))
    assert len(read_shards(tmp_path, "train").classes) == 1000


def test_without_class_names_labels_are_integers_all_the_same(tmp_path):
    folder_of(tmp_path, [b"0", b"7"], None)
    assert labels_of(read_shards(tmp_path, "val")) == [0, 7]
    folder_of(tmp_path, [b"0", b"dog"], None)
    with pytest.raises(UsageError, match="label 'dog': not an integer and no classes.json lists it"):
        read_shards(tmp_path, "val")


@pytest.mark.parametrize("label", [-1, 2])
def test_no_label_out_of_range_is_written(tmp_path, label):
    samples = [Sample("a", encoded(0), 0), Sample("b", encoded(1), label)]
    with pytest.raises(UsageError, match=f"sample b has label {label}; give 0 to 1"):
        write_shards(samples, tmp_path, "train", ["a", "b"], "test")
    assert not list(tmp_path.iterdir())
