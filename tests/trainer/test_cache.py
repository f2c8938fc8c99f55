"""The cache of remote shards against a web server with faults, on loopback."""

import multiprocessing
import os
import time
from hashlib import sha256
from http.server import BaseHTTPRequestHandler

import pytest
from web import served

import trainer.cache
import trainer.locations
from trainer.cache import ShardCache
from trainer.config import UsageError

BODY = {f"/{split}/000.tar": os.urandom(300_000) + split.encode() for split in ("train", "val", "test")}


class Faulty(BaseHTTPRequestHandler):
    """Serves BODY; `faults` holds what befalls the next requests, `served` counts the answers."""

    faults, served = [], []

    def do_GET(self):
        body, fault = BODY[self.path], self.faults.pop(0) if self.faults else None
        self.served.append(self.path)
        if fault == "503":
            self.send_error(503)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault == "reset":
            self.wfile.write(body[:1000])
            self.connection.close()
        elif fault == "truncated":
            self.wfile.write(body[: len(body) // 2])
        elif fault == "stalled":
            self.wfile.write(body[:1000])
            time.sleep(1.5)
        elif fault == "slow":
            for start in range(0, len(body), 100_000):
                self.wfile.write(body[start : start + 100_000])
                time.sleep(0.2)
        else:
            self.wfile.write(body)


@pytest.fixture
def server(monkeypatch):
    Faulty.faults, Faulty.served = [], []
    monkeypatch.setattr(trainer.cache, "_back_off", lambda attempt: None)
    monkeypatch.setattr(trainer.locations, "TIMEOUT", 1)
    with served(Faulty) as address:
        yield address


def read(cache, location, checksum=None):
    with cache.open(location, checksum) as stream:
        return stream.read()


def copies(folder):
    return sorted(path.name.partition("-")[2] for path in folder.iterdir() if not path.name.startswith("."))


def checksum(path):
    return sha256(BODY[path]).hexdigest()


def test_a_shard_is_downloaded_once_and_splits_of_one_name_stay_apart(server, tmp_path):
    cache = ShardCache(str(tmp_path))
    for _ in range(2):
        for path, body in BODY.items():
            assert read(cache, server + path) == body
    assert sorted(Faulty.served) == sorted(BODY)
    assert copies(tmp_path) == ["000.tar"] * 3


@pytest.mark.parametrize("fault", ["503", "reset", "truncated", "stalled"])
def test_a_fault_is_tried_again(server, tmp_path, fault):
    Faulty.faults[:] = [fault, fault]
    cache = ShardCache(str(tmp_path))
    assert read(cache, f"{server}/val/000.tar", checksum("/val/000.tar")) == BODY["/val/000.tar"]
    assert len(Faulty.served) == 3


@pytest.mark.parametrize("fault", ["503", "truncated"])
def test_a_lasting_fault_is_an_error_that_leaves_nothing(server, tmp_path, fault):
    Faulty.faults[:] = [fault] * 9
    with pytest.raises(UsageError, match=r"val/000.tar could not be read in 5 tries"):
        read(ShardCache(str(tmp_path)), f"{server}/val/000.tar", checksum("/val/000.tar"))
    assert copies(tmp_path) == []
    assert not list(tmp_path.glob("*.partial"))


def test_the_least_recently_used_goes_first_and_its_reader_keeps_it(server, tmp_path):
    cache = ShardCache(str(tmp_path), size=650_000 / 1e9)
    read(cache, f"{server}/train/000.tar")
    with cache.open(f"{server}/val/000.tar") as reader:
        os.utime(reader.fileno(), (1, 1))
        read(cache, f"{server}/test/000.tar")
        assert reader.read() == BODY["/val/000.tar"]
    served = len(Faulty.served)
    read(cache, f"{server}/train/000.tar")
    assert len(Faulty.served) == served, "the one used last was evicted"
    read(cache, f"{server}/val/000.tar")
    assert len(Faulty.served) == served + 1


def fetch(folder, location, queue):
    queue.put(sha256(read(ShardCache(folder), location)).hexdigest())


def test_processes_that_want_the_same_shard_share_one_download(server, tmp_path):
    Faulty.faults[:] = ["slow"]
    context = multiprocessing.get_context("forkserver")
    queue = context.Queue()
    workers = [context.Process(target=fetch, args=(str(tmp_path), f"{server}/train/000.tar", queue)) for _ in range(4)]
    for worker in workers:
        worker.start()
    assert {queue.get(timeout=60) for _ in workers} == {checksum("/train/000.tar")}
    for worker in workers:
        worker.join()
    assert Faulty.served == ["/train/000.tar"]


def test_a_download_that_was_killed_is_done_again(server, tmp_path):
    Faulty.faults[:] = ["slow"]
    context = multiprocessing.get_context("forkserver")
    queue = context.Queue()
    worker = context.Process(target=fetch, args=(str(tmp_path), f"{server}/val/000.tar", queue))
    worker.start()
    while not list(tmp_path.glob(".*.partial")):
        assert worker.is_alive()
    worker.kill()
    worker.join()
    assert copies(tmp_path) == []
    assert read(ShardCache(str(tmp_path)), f"{server}/val/000.tar") == BODY["/val/000.tar"]


def test_local_files_are_read_where_they_lie(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"x")
    assert read(ShardCache(str(tmp_path / "cache")), str(tmp_path / "a.tar")) == b"x"
    assert not (tmp_path / "cache").exists()
