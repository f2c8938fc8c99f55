"""Shards behind a web server and in an object store, both real servers on loopback."""

from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import pytest
from web import served

from trainer.cache import ShardCache
from trainer.config import UsageError
from trainer.data import LoaderOptions, eval_loader
from trainer.locations import absolute, open_file
from trainer.normalization import IMAGENET
from trainer.preprocess import Transform
from trainer.shards import read_shards


@pytest.fixture
def web(digits):
    with served(SimpleHTTPRequestHandler, directory=digits) as address:
        yield address


@pytest.fixture(scope="module")
def bucket(digits, object_store):
    object_store.create_bucket(Bucket="images")
    for path in digits.iterdir():
        object_store.upload_file(str(path), "images", f"digits/{path.name}")
    return "s3://images/digits"


def labels(shards, folder):
    options = LoaderOptions(normalization=IMAGENET, batch_size=100, cache=ShardCache(str(folder)))
    loader = eval_loader(shards, Transform(None, train=False), options)
    return [int(label) for batch in loader.epoch() for label in batch.labels]


def test_a_web_folder_streams_what_the_local_one_does(web, digits, tmp_path):
    shards = read_shards(web, "val")
    assert shards.paths[0] == f"{web}/val-000000.tar"
    assert shards.total == 359
    assert labels(shards, tmp_path) == labels(read_shards(digits, "val"), tmp_path)


def test_a_bucket_streams_what_the_local_folder_does(bucket, digits, tmp_path):
    shards = read_shards(bucket, "val")
    assert shards.paths[0] == f"{bucket}/val-000000.tar"
    assert labels(shards, tmp_path) == labels(read_shards(digits, "val"), tmp_path)


@pytest.mark.parametrize("pattern", ["{train-{000000..000012},val-000001}.tar", "{train,val}-{000001..000001}.tar"])
def test_braces_choose_shards(web, digits, pattern):
    for folder in (web, str(digits)):
        shards = read_shards(f"{folder}/{pattern}", "val")
        assert shards.paths == (f"{folder}/val-000001.tar",)
        assert shards.counts == (100,)


def test_what_is_not_there_is_named(web, bucket, digits, tmp_path):
    for location, message in [
        (f"{web}/nowhere", "no meta.json there"),
        (f"{bucket}/nowhere", "no such folder"),
        ("s3://nobucket/digits", "cannot be read"),
        ("http://127.0.0.1:9/digits", "cannot be read"),
        ("ftp://host/digits", "give a folder or a URL"),
        (f"{digits}/{{val-000003,val-000004}}.tar", r"missing \['val-000004.tar'\]"),
        (f"{web}/val-{{000003..000004}}.tar", r"missing \['val-000004.tar'\]"),
        ("{/a,/b}/val-000000.tar", "names 2 folders"),
    ]:
        with pytest.raises(UsageError, match=message):
            read_shards(location, "val")
    with pytest.raises(FileNotFoundError):
        open_file(f"{web}/val-999999.tar")


def test_a_path_becomes_absolute_and_a_url_stays():
    assert absolute("runs") == str(Path.cwd() / "runs")
    assert absolute("s3://images/digits") == "s3://images/digits"
