"""The shards of a split are the same each time, whatever happens meanwhile."""

import os
import re
import signal
import subprocess
import sys
import tarfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from pictures import WNIDS, contents, encoded, tree
from PIL import Image

from trainer.config import UsageError
from trainer.shards import Sample, read_shards, write_shards
from trainer.shards.make import Settings, make_shards, plan
from trainer.shards.sources import class_folders

ROOT = Path(__file__).parents[3]


def test_the_number_of_workers_changes_nothing(tmp_path, command):
    tree(tmp_path / "in")
    for workers in (1, 3):
        out = tmp_path / str(workers)
        given = ["--images", tmp_path / "in", "--split", "train", "--out", out, "--per-shard", 2]
        assert command(*given, "--shorter-side", 10, "--workers", workers) == 0
    assert contents(tmp_path / "1") == contents(tmp_path / "3")
    assert len(contents(tmp_path / "1")) == 7


def test_plan_follows_seed_and_size(tmp_path):
    source = class_folders(tree(tmp_path / "in"))
    size = source.items[0].size
    groups = list(plan(source, Settings(shard_megabytes=size * 3.5 / 1e6)))
    assert all(sum(item.size for item in group) <= size * 3.5 for group in groups)
    assert [len(group) for group in groups] == [3, 3, 3, 3]
    assert sorted((item for group in groups for item in group), key=str) == sorted(source.items, key=str)
    assert groups != list(plan(source, Settings(shard_megabytes=size * 3.5 / 1e6, seed=1)))
    assert all(len(group) == 1 for group in plan(source, Settings(shard_megabytes=1e-6)))


def start(folder, out, *more):
    line = [sys.executable, "-m", "trainer.shards", "--images", folder, "--split", "train", "--out", out, *more]
    return subprocess.Popen(list(map(str, line)), cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)


def test_a_killed_command_goes_on_where_it_was(tmp_path):
    (tmp_path / "in/a").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for index in range(60):
        noise = Image.fromarray(generator.integers(0, 256, (300, 400, 3), dtype=np.uint8))
        noise.save(tmp_path / f"in/a/{index}.png", compress_level=0)
    more = ["--per-shard", 4, "--workers", 2]
    killed = start(tmp_path / "in", tmp_path / "out", *more)
    out = tmp_path / "out"
    deadline = time.monotonic() + 120
    while len(list(out.glob(".train-*.tar.json"))) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    while True:  # its workers leave too
        try:
            os.killpg(killed.pid, 0)
        except ProcessLookupError:
            break
        assert time.monotonic() < deadline
        time.sleep(0.05)
    finished = {path: path.stat().st_mtime_ns for path in out.glob("train-*.tar")}
    noted = [out / path.name[1:].removesuffix(".json") for path in out.glob(".train-*.tar.json")]
    assert 3 <= len(finished) < 15
    assert not (out / "meta.json").exists()
    for path in finished:
        with tarfile.open(path) as archive:
            assert len(archive.getnames()) == 8
    with pytest.raises(UsageError, match="unfinished"):
        read_shards(out, "train")
    noted[0].write_bytes(noted[0].read_bytes()[:-1] + b"x")  # and one was damaged meanwhile

    source = class_folders(tmp_path / "in")
    make_shards(source, str(out), "train", Settings(per_shard=4))
    assert [path for path in noted[1:] if path.stat().st_mtime_ns != finished[path]] == []
    make_shards(source, str(tmp_path / "whole"), "train", Settings(per_shard=4))
    assert contents(out) == contents(tmp_path / "whole")


def test_anything_changed_is_refused(tmp_path, command, capsys):
    tree(tmp_path / "in")
    given = ["--images", tmp_path / "in", "--split", "train", "--out", tmp_path / "out", "--per-shard", 5]
    given += ["--workers", 1]
    broken = tmp_path / "in" / WNIDS[2] / "9.jpg"
    broken.write_bytes(b"x")
    assert command(*given) == 2  # leaves it unfinished
    for end in ("unfinished", "finished"):
        before = contents(tmp_path / "out")
        capsys.readouterr()
        assert command(*given, "--seed", 1) == 2
        assert "seed 0 there, 1 now" in capsys.readouterr().err
        (tmp_path / "in" / WNIDS[0] / "0.jpg").rename(tmp_path / "in" / WNIDS[0] / "new.jpg")
        assert command(*given) == 2
        assert re.search("listing .* there", capsys.readouterr().err)
        (tmp_path / "in" / WNIDS[0] / "new.jpg").rename(tmp_path / "in" / WNIDS[0] / "0.jpg")
        assert contents(tmp_path / "out") == before
        if end == "unfinished":
            assert command(*given, "--skip-broken") == 0

    whole = contents(tmp_path / "out")
    (tmp_path / "out/train-000001.tar").unlink()
    assert command(*given, "--skip-broken") == 0  # the same command mends it
    assert contents(tmp_path / "out") == whole

    samples = [Sample(str(i), encoded(1), 0) for i in range(2)]
    write_shards(samples, tmp_path / "other", "train", WNIDS, "test")
    assert command(*given[:4], "--out", tmp_path / "other") == 2
    assert "did not make" in capsys.readouterr().err


def test_splits_of_other_classes_are_refused(tmp_path, command, capsys):
    tree(tmp_path / "train")
    tree(tmp_path / "val", WNIDS[:2])
    assert command("--images", tmp_path / "train", "--split", "train", "--out", tmp_path / "out") == 0
    before = contents(tmp_path / "out")
    assert command("--images", tmp_path / "val", "--split", "val", "--out", tmp_path / "out") == 2
    assert "first difference: n02105855 there, None here" in capsys.readouterr().err
    with pytest.raises(UsageError, match="holds train of 3 classes"):
        write_shards([Sample("a", b"x", 0)], tmp_path / "out", "val", WNIDS[::-1], "test")
    assert contents(tmp_path / "out") == before


def test_memory_does_not_grow_with_the_shards(tmp_path):
    samples = (Sample(str(i), bytes(1_000_000), 0) for i in range(60))
    tracemalloc.start()
    write_shards(samples, tmp_path, "train", ["a"], "test", per_shard=30)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10_000_000


def test_two_splits_are_written_to_a_bucket(tmp_path, object_store, command, capsys):
    object_store.create_bucket(Bucket="made")
    tree(tmp_path / "in")
    out = "s3://made/sets/photos/"
    for split, workers in (("train", 1), ("val", 2)):
        given = ["--images", tmp_path / "in", "--split", split, "--out", out, "--per-shard", 5, "--workers", workers]
        assert command(*given) == 0
    listed = {entry["Key"] for entry in object_store.list_objects_v2(Bucket="made")["Contents"]}
    expected = {f"{split}-{i:06d}.tar" for split in ("train", "val") for i in range(3)} | {"meta.json"}
    assert {name for name in listed if not name.endswith("/")} == {f"sets/photos/{name}" for name in expected}
    make_shards(class_folders(tmp_path / "in"), str(tmp_path / "local"), "val", Settings(per_shard=5))
    stored = object_store.get_object(Bucket="made", Key="sets/photos/val-000001.tar")["Body"].read()
    assert stored == (tmp_path / "local/val-000001.tar").read_bytes()
    assert read_shards(out, "train").total == 12

    object_store.delete_object(Bucket="made", Key="sets/photos/val-000001.tar")
    capsys.readouterr()
    assert command("--verify", out, "--workers", 1) == 1
    assert "val-000001.tar: missing" in capsys.readouterr().out
    assert command(*given) == 0
    assert "2 shards kept" in capsys.readouterr().out
    assert command("--verify", out, "--workers", 1) == 0


@pytest.mark.parametrize("out", ["s3://nobucket/x", "http://127.0.0.1:9/x", "ftp://host/x"])
def test_a_place_that_cannot_be_written_is_one_line(tmp_path, object_store, command, capsys, out):
    tree(tmp_path / "in")
    assert command("--images", tmp_path / "in", "--split", "train", "--out", out) == 2
    assert re.fullmatch(r"error: [^\n]*\n", capsys.readouterr().err)
