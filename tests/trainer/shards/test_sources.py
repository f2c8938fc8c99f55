"""Every kind of source becomes shards with the right labels; what is broken in it is named."""

import gzip
import io
import json
import os
import re
import shutil

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from pictures import WNIDS, contents, encoded, members, tar, tree
from PIL import Image, ImageOps
from scipy.io import savemat
from streams import AS_IS, options
from tensorboardX.record_writer import RecordWriter

from trainer.command import how_to_run
from trainer.config import UsageError
from trainer.data import eval_loader
from trainer.shards import encode_jpeg, read_shards
from trainer.shards.images import as_jpeg
from trainer.shards.make import Settings, make_shards
from trainer.shards.sources import class_folders


def test_class_folders_become_shards_that_stream(tmp_path, command):
    tree(tmp_path / "in")
    assert command("--images", tmp_path / "in", "--split", "train", "--out", tmp_path / "out", "--per-shard", 5) == 0
    shards = read_shards(tmp_path / "out", "train")
    assert shards.counts == (5, 5, 2)
    assert shards.classes == WNIDS
    loader = eval_loader(shards, AS_IS, options(4))
    labels = [int(label) for batch in loader.epoch() for label in batch.labels]
    assert sorted(labels) == [0] * 4 + [1] * 4 + [2] * 4
    assert labels != sorted(labels)  # shuffled over the classes
    assert {name for name in os.listdir(tmp_path / "out") if name.startswith(".")} == set()


def test_train_archive_is_read_in_place(tmp_path, command):
    names = (WNIDS[1], WNIDS[0], WNIDS[2])  # not in order
    images = {
        f"{wnid}_{i}": (encoded(40 * k + i), sorted(names).index(wnid)) for k, wnid in enumerate(names) for i in (7, 3)
    }
    classes = {
        f"{wnid}.tar": tar({f"{key}.JPEG": data for key, (data, _) in images.items() if key.startswith(wnid)})
        for wnid in names
    }
    tar(classes, tmp_path / "train.tar")
    assert command("--imagenet-train", tmp_path / "train.tar", "--split", "train", "--out", tmp_path / "out") == 0
    assert members(tmp_path / "out") == images
    assert read_shards(tmp_path / "out", "train").classes == WNIDS


def devkit(path, truth):
    """ILSVRC ids are in another order than WordNet ids; a group of classes has an id above theirs."""
    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("num_children", "O")]
    rows = np.array([(1, WNIDS[2], 0), (2, WNIDS[0], 0), (3, WNIDS[1], 0), (4, "n00001740", 3)], dtype=kind)
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": rows.reshape(-1, 1)})
    folder = "ILSVRC2012_devkit_t12/data"
    plain = tar({
        f"{folder}/meta.mat": buffer.getvalue(),
        f"{folder}/ILSVRC2012_validation_ground_truth.txt": "".join(f"{n}\n" for n in truth).encode(),
    })  # fmt: skip
    path.write_bytes(gzip.compress(plain))


def test_val_archive_takes_labels_by_file_name(tmp_path, command):
    images = {f"ILSVRC2012_val_{i:08d}": encoded(i * 30) for i in (3, 1, 4, 2)}
    tar({f"{key}.JPEG": data for key, data in images.items()}, tmp_path / "val.tar")
    devkit(tmp_path / "kit.tar.gz", [1, 3, 2, 1])
    (tmp_path / "names.txt").write_text("".join(f"{WNIDS[i]} words\n" for i in (2, 1, 0, 2)))
    expected = {f"ILSVRC2012_val_{i:08d}": label for i, label in [(1, 2), (2, 1), (3, 0), (4, 2)]}
    for flag, name in (("--devkit", "kit.tar.gz"), ("--synsets", "names.txt")):
        out = tmp_path / flag
        assert (
            command("--imagenet-val", tmp_path / "val.tar", flag, tmp_path / name, "--split", "val", "--out", out) == 0
        )
        assert members(out, "val") == {key: (images[key], label) for key, label in expected.items()}
        assert read_shards(out, "val").classes == WNIDS


def example_type():
    """tf.train.Example as protobuf builds it, so our reader is held against another implementation."""
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="t", syntax="proto3")
    scalar = descriptor_pb2.FieldDescriptorProto

    def message(name, *fields):
        declared = file.message_type.add(name=name)
        for number, (field, kind, repeated, type_name) in enumerate(fields, start=1):
            declared.field.add(name=field, number=number, type=kind, label=3 if repeated else 1, type_name=type_name)
        return declared

    message("BytesList", ("value", scalar.TYPE_BYTES, True, None))
    message("FloatList", ("value", scalar.TYPE_FLOAT, True, None))
    message("Int64List", ("value", scalar.TYPE_INT64, True, None))
    lists = [(f"{kind}_list", scalar.TYPE_MESSAGE, False, f".t.{name}") for kind, name in
             (("bytes", "BytesList"), ("float", "FloatList"), ("int64", "Int64List"))]  # fmt: skip
    message("Feature", *lists)
    entry = message("Features", ("feature", scalar.TYPE_MESSAGE, True, ".t.Features.FeatureEntry")).nested_type.add(
        name="FeatureEntry"
    )
    entry.field.add(name="key", number=1, type=scalar.TYPE_STRING, label=1)
    entry.field.add(name="value", number=2, type=scalar.TYPE_MESSAGE, label=1, type_name=".t.Feature")
    entry.options.map_entry = True
    message("Example", ("features", scalar.TYPE_MESSAGE, False, ".t.Features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Example"))


def records(path, images):
    """Write (image, label from 1, synset) as TFRecords."""
    writer, example = RecordWriter(str(path)), example_type()
    for data, label, synset in images:
        one = example()
        one.features.feature["image/encoded"].bytes_list.value.append(data)
        one.features.feature["image/class/label"].int64_list.value.append(label)
        one.features.feature["image/object/bbox/xmin"].float_list.value.extend([0.1, 0.2])
        one.features.feature["image/object/bbox/label"].int64_list.value.extend([300, -1])
        if synset:
            one.features.feature["image/class/synset"].bytes_list.value.append(synset.encode())
        writer.write(one.SerializeToString())
    writer.close()


def test_tfrecords_count_labels_from_one(tmp_path, command, capsys):
    images = [(encoded(i * 40), i % 3 + 1, WNIDS[i % 3] if i < 3 else "") for i in range(5)]
    records(tmp_path / "train-0", images[:3])
    records(tmp_path / "train-1", images[3:])
    (tmp_path / "names.txt").write_text("\n".join(WNIDS))
    files = [tmp_path / "train-1", tmp_path / "train-0"]
    given = ["--tfrecords", *files, "--synsets", tmp_path / "names.txt", "--split", "train", "--out"]
    assert command(*given, tmp_path / "out") == 0
    found = members(tmp_path / "out")
    assert [found[key] for key in sorted(found)] == [(data, label - 1) for data, label, _ in images]

    for wrong in ((encoded(0), 4, ""), (encoded(0), 0, ""), (encoded(0), 1, WNIDS[1])):
        records(tmp_path / "train-1", [wrong])
        assert command(*given, tmp_path / "wrong") == 2
        assert "check the synsets" in capsys.readouterr().err


def test_damaged_tfrecords_are_named(tmp_path, command, capsys):
    records(tmp_path / "train-0", [(encoded(1), 1, ""), (encoded(2), 2, "")])
    whole = (tmp_path / "train-0").read_bytes()
    (tmp_path / "names.txt").write_text("\n".join(WNIDS))
    given = ["--tfrecords", tmp_path / "train-0", "--synsets", tmp_path / "names.txt", "--split", "train", "--out"]
    for position, cut, message in (
        (200, None, "checksum differs"),
        (0, None, "no TFRecord at byte 0"),
        (0, -5, "ends within"),
    ):
        damaged = bytearray(whole)
        damaged[position] ^= cut is None
        (tmp_path / "train-0").write_bytes(damaged[:cut])
        assert command(*given, tmp_path / "out") == 2
        assert message in capsys.readouterr().err


def test_sources_that_are_none_are_one_line(tmp_path, command, capsys):
    tree(tmp_path / "in")
    truncated = tar({"n01440764.tar": tar({"n01440764_1.JPEG": encoded(1)})})
    (tmp_path / "short.tar").write_bytes(truncated[:1500])
    tar({"a.txt": b""}, tmp_path / "other.tar")
    (tmp_path / "names.txt").write_text("goldfish\n")
    (tmp_path / "empty/a").mkdir(parents=True)
    (tmp_path / "one.txt").write_text("n01440764\n")
    names = ["--synsets", tmp_path / "one.txt"]
    for arguments, message in [
        (["--images", tmp_path / "nowhere"], "no such folder"),
        (["--images", tmp_path / "in" / WNIDS[0]], "no class folders"),
        (["--images", tmp_path / "empty"], "no images in it"),
        (["--imagenet-train", tmp_path / "short.tar"], "not a complete, uncompressed tar"),
        (["--imagenet-train", tmp_path / "other.tar"], "no class archives"),
        (["--imagenet-train", tmp_path / "nowhere"], "No such file"),
        (["--imagenet-val", tmp_path / "other.tar", *names], "has 0 images, the labels are of 1"),
        (["--imagenet-val", tmp_path / "other.tar", "--synsets", tmp_path / "names.txt"], "expected one WordNet id"),
        (["--imagenet-val", tmp_path / "other.tar", "--devkit", tmp_path / "other.tar"], "is not ILSVRC2012_devkit"),
        (["--tfrecords", tmp_path / "nowhere", *names], "no such file"),
        (["--images", tmp_path / "in", "--per-shard", "0"], "give a number above 0"),
        (["--images", tmp_path / "in", "--quality", "0"], "1 to 95"),
    ]:
        assert command(*arguments, "--split", "val", "--out", tmp_path / "out") == 2
        printed = capsys.readouterr().err
        assert re.search(message, printed), (arguments, printed)
        assert printed.startswith("error: ")
        assert printed.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_what_is_left_alone_and_classes_without_images_are_said(tmp_path, command, capsys):
    tree(tmp_path / "in")
    (tmp_path / "in/kitten").mkdir()
    for name in ("a.HEIC", "b.heic", "c.avif", "README"):
        (tmp_path / "in/kitten" / name).write_bytes(b"")
    assert command("--images", tmp_path / "in", "--split", "val", "--out", tmp_path / "out") == 0
    alone, warning = capsys.readouterr().err.splitlines()
    assert "4 files were left alone" in alone
    assert alone.endswith(": .heic (2), none (1), .avif (1)")
    assert warning == "warning: classes without an image: kitten"
    for other in WNIDS:
        shutil.rmtree(tmp_path / "in" / other)
    assert command("--images", tmp_path / "in", "--split", "val", "--out", tmp_path / "new") == 2
    assert re.search("no images in it; expected .*, not .heic", capsys.readouterr().err)
    (tmp_path / "in/kitten/a.txt").write_text("")
    assert command("--images", tmp_path / "in/kitten/a.txt", "--split", "val", "--out", tmp_path / "new") == 2
    assert "a.txt: is no folder" in capsys.readouterr().err


def test_verify_of_no_folder_is_said_so(tmp_path, command, capsys):
    assert command("--verify", tmp_path / "nowhere") == 2
    assert capsys.readouterr().err.startswith(f"error: --verify {tmp_path}/nowhere: no such folder")


def test_keys_are_unique_and_fit_a_tar_file(tmp_path):
    for name in ("a/b_c.jpg", "a_b/c.jpg", "a/x.y.jpg", "a/x_y.jpg", "a/x.png", "a/x.jpg", "a/deep/x.jpg", "a/x-1.jpg"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(1))
    (tmp_path / "in/a" / f"{'long' * 50}.jpg").write_bytes(encoded(1))
    (tmp_path / "in/a/ünï.jpg").write_bytes(encoded(1))
    (tmp_path / "in/a/notes.txt").write_text("")
    source = class_folders(tmp_path / "in")
    assert source.ignored == {".txt": 1}
    shards = make_shards(source, str(tmp_path / "out"), "train", Settings())
    assert shards.total == len(members(tmp_path / "out")) == 10
    assert all("." not in key for key in members(tmp_path / "out"))


def test_jpegs_stay_and_the_rest_becomes_rgb_jpeg(tmp_path):
    folder = tmp_path / "in" / "a"
    folder.mkdir(parents=True)
    kept = {"gray": encoded(200, mode="L"), "cmyk": encoded(200, mode="CMYK"), "fine": encoded(200)}
    for name, data in kept.items():
        (folder / f"{name}.jpg").write_bytes(data)
    deep = io.BytesIO()
    Image.fromarray(np.full((16, 24), 0x8000, np.uint16)).save(deep, "PNG")
    (folder / "deep.png").write_bytes(deep.getvalue())
    (folder / "disguised.JPEG").write_bytes(encoded(200, "PNG"))
    (folder / "palette.gif").write_bytes(encoded(200, "GIF"))
    make_shards(class_folders(tmp_path / "in"), str(tmp_path / "out"), "train", Settings())
    found = {key.removeprefix("a_"): data for key, (data, _) in members(tmp_path / "out").items()}
    assert {name: found[name] for name in kept} == kept
    for name in ("deep", "disguised", "palette"):
        image = Image.open(io.BytesIO(found[name]))
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (24, 16))
    assert np.abs(np.asarray(Image.open(io.BytesIO(found["deep"]))).astype(int) - 128).max() < 3
    assert np.abs(np.asarray(Image.open(io.BytesIO(found["disguised"])))[0, 0].astype(int) - [200, 55, 0]).max() < 4


def test_shorter_side_scales_down_turns_upright_and_never_enlarges(tmp_path):
    folder = tmp_path / "in" / "a"
    folder.mkdir(parents=True)
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held upright
    (folder / "wide.jpg").write_bytes(encoded(9, size=(90, 30)))
    (folder / "small.jpg").write_bytes(encoded(9, size=(12, 8)))
    (folder / "turned.jpg").write_bytes(encoded(9, size=(60, 40), exif=turned))
    (folder / "turned_small.jpg").write_bytes(encoded(9, size=(12, 8), exif=turned))
    (folder / "odd.jpg").write_bytes(encoded(9, size=(60, 40), exif=b"Exif\0\0garbage"))
    make_shards(class_folders(tmp_path / "in"), str(tmp_path / "out"), "train", Settings(shorter_side=20))
    found = {key.removeprefix("a_"): data for key, (data, _) in members(tmp_path / "out").items()}
    sizes = {name: Image.open(io.BytesIO(data)).size for name, data in found.items()}
    assert sizes == {"wide": (60, 20), "small": (12, 8), "turned": (20, 30), "turned_small": (8, 12), "odd": (30, 20)}
    assert found["small"] == (folder / "small.jpg").read_bytes()
    assert Image.open(io.BytesIO(found["turned"])).getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_as_pillow_does(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(
        buffer, "PNG", exif=exif
    )
    ours = Image.open(io.BytesIO(as_jpeg(buffer.getvalue())))
    theirs = Image.open(io.BytesIO(encode_jpeg(ImageOps.exif_transpose(Image.open(buffer)))))
    assert ours == theirs


def test_broken_images_are_named_and_refused_or_left_out(tmp_path, command, capsys):
    tree(tmp_path / "in")
    broken = {
        "cut.jpg": encoded(1, size=(64, 64))[:-40],
        "empty.jpg": b"",
        "text.jpg": b"<html>not found</html>",
        "cut.png": encoded(1, "PNG", size=(64, 64))[:-30],
    }
    for name, data in broken.items():
        (tmp_path / "in" / WNIDS[0] / name).write_bytes(data)
    given = ["--images", tmp_path / "in", "--split", "train", "--out", tmp_path / "out", "--workers", 1]
    assert command(*given) == 2
    printed = capsys.readouterr().err
    assert all(name in printed for name in broken)
    assert printed.count("\n") == 1
    assert set(contents(tmp_path / "out")) == {".train.json"}
    with pytest.raises(UsageError, match="unfinished"):
        read_shards(tmp_path / "out", "train")

    assert command(*given, "--skip-broken") == 0
    assert "4 broken ones left out" in capsys.readouterr().out
    meta = json.loads((tmp_path / "out/meta.json").read_text())["splits"]["train"]
    assert meta["skipped"] == 4
    assert meta["shards"]["train-000000.tar"]["samples"] == len(members(tmp_path / "out")) == 12


@pytest.mark.parametrize(
    ("names", "commands"),
    [
        (("train", "val", "test"), ("train --split train", "val --split val", "test --split test")),
        (("Training", "validation"), ("Training --split train", "validation --split val")),
        (("train",), ("train --split train",)),
        (("train", "annotations"), ("train --split train",)),
    ],
)
def test_folders_of_splits_are_no_classes(tmp_path, command, capsys, names, commands):
    for name in names:
        tree(tmp_path / "photos" / name)
    assert command("--images", tmp_path / "photos", "--split", "train", "--out", tmp_path / "out") == 2
    printed = capsys.readouterr().err
    assert "are splits, not classes" in printed
    assert printed.count("\n") == 1
    for one in commands:
        start = how_to_run("shards", "--images")
        assert f"`{start} {tmp_path}/photos/{one} --out {tmp_path / 'out'}`" in printed
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("names", [("bus", "train"), ("test", "tube"), ("train",)])
def test_a_class_may_be_called_train(tmp_path, names):
    assert class_folders(tree(tmp_path / "photos", names)).classes == names
