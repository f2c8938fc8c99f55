"""Shards and streams on the embedded digits."""

import dataclasses
import io
import os
import shutil
import tarfile
from itertools import islice

import psutil
import pytest
import torch
from streams import AS_IS, options

from trainer.cache import ShardCache
from trainer.config import UsageError
from trainer.data import eval_loader, spread, train_loader
from trainer.preprocess import Transform
from trainer.readers import TrainReader
from trainer.shards import evaluation_splits, read_shards


def pairs(batches):
    for batch in batches:
        yield from zip(batch.images, batch.labels, strict=True)


def labels_and_sums(batches):
    return [(int(label), round(float(image.sum()), 3)) for image, label in pairs(batches)]


def evaluated(shards, ranks, workers, examples=None):
    """Index, content and company of each example."""
    found = []
    for rank in range(ranks):
        with eval_loader(
            shards, AS_IS, options(50, rank=rank, world_size=ranks, loader_workers=workers), examples=examples
        ) as loader:
            for batch in loader.epoch():
                indices = batch.indices.tolist()
                found += [(i, pair, indices) for i, pair in zip(indices, labels_and_sums([batch]), strict=True)]
    return sorted(found)


@pytest.mark.parametrize(
    ("ranks", "workers"),
    [*((n, 0) for n in (1, 2, 3, 4, 9)), *(pytest.param(*n, marks=pytest.mark.slow) for n in ((1, 3), (2, 1), (3, 2)))],
)
@pytest.mark.parametrize("examples", [None, 120])
def test_evaluation_reads_every_example_once_in_the_same_batches(digits, ranks, workers, examples):
    shards = read_shards(digits, "val")
    found = evaluated(shards, ranks, workers, examples)
    assert [index for index, *_ in found] == list(range(359) if examples is None else spread(359, examples))
    assert found == evaluated(shards, 1, 0, examples)


def test_evaluation_reads_only_the_shards_it_needs(digits, monkeypatch):
    opened = []
    original = ShardCache.open

    def remember(self, location, checksum=None):
        opened.append(location[-10:])
        return original(self, location, checksum)

    monkeypatch.setattr(ShardCache, "open", remember)
    list(eval_loader(read_shards(digits, "val"), AS_IS, options(50, rank=1, world_size=2)).epoch())
    assert opened == ["000002.tar", "000003.tar"]


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (2, 0), (5, 0), pytest.param(2, 2, marks=pytest.mark.slow)])
def test_training_takes_the_same_number_of_full_batches_on_every_rank(digits, ranks, workers):
    shards = read_shards(digits, "val")  # 4 shards: fewer than readers in the last cases
    seen = []
    for rank in range(ranks):
        with train_loader(
            shards, AS_IS, options(32, rank=rank, world_size=ranks, loader_workers=workers), seed=1, steps=3
        ) as loader:
            batches = list(loader.epoch(0))
        assert [len(batch.labels) for batch in batches] == [32] * 3
        seen.append(labels_and_sums(batches))
    assert all(a != b for i, a in enumerate(seen) for b in seen[:i])


def test_order_is_a_function_of_seed_and_epoch(digits):
    def order(seed, epoch):
        loader = train_loader(read_shards(digits, "train"), AS_IS, options(64), seed=seed, steps=2)
        return labels_and_sums(loader.epoch(epoch))

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


@pytest.mark.parametrize("workers", [0, pytest.param(3, marks=pytest.mark.slow)])
def test_an_epoch_entered_at_a_step_gives_what_is_left_of_it(digits, workers):
    """With random crops; worker processes live through several epochs."""
    shards = read_shards(digits, "train")
    how = options(16, rank=1, world_size=2, loader_workers=workers)
    with train_loader(shards, Transform(None, train=True), how, seed=3, steps=5) as loader:
        whole = list(loader.epoch(1))
        for first in (2, 4, 5):
            rest = list(loader.epoch(1, first))
            assert len(rest) == 5 - first
            for ours, theirs in zip(rest, whole[first:], strict=True):
                assert torch.equal(ours.images, theirs.images)
                assert torch.equal(ours.labels, theirs.labels)


def test_skipped_steps_are_not_decoded(digits, monkeypatch):
    decoded = []
    monkeypatch.setattr(
        Transform, "__call__", lambda self, encoded, rng: decoded.append(1) or torch.zeros(3, 4, 4).byte()
    )
    loader = train_loader(read_shards(digits, "train"), AS_IS, options(8), seed=0, steps=4)
    list(loader.epoch(0, 3))
    assert len(decoded) == 8


def test_loader_processes_end_with_the_loader(digits):
    before, shared = set(psutil.Process().children(recursive=True)), set(os.listdir("/dev/shm"))
    with train_loader(read_shards(digits, "train"), AS_IS, options(8, loader_workers=2), seed=0, steps=2) as loader:
        list(loader.epoch(0))
        list(loader.epoch(1))
        assert sum("forkserver" in " ".join(p.cmdline()) for p in psutil.Process().children(recursive=True)) >= 2
    left = [p for p in set(psutil.Process().children(recursive=True)) - before if p.ppid() != os.getpid()]
    psutil.wait_procs(left, timeout=20)
    assert not [p for p in left if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert not [name for name in set(os.listdir("/dev/shm")) - shared if name.startswith("torch_")]


def test_an_epoch_over_the_whole_split_sees_every_example_once(digits):
    shards = read_shards(digits, "val")
    loader = train_loader(shards, AS_IS, options(1), seed=0, steps=359)
    assert sorted(labels_and_sums(loader.epoch(0))) == sorted(pair for _, pair, _ in evaluated(shards, 1, 0))


def one_shard(digits):
    whole = read_shards(digits, "val")
    return dataclasses.replace(whole, paths=whole.paths[:1], counts=whole.counts[:1], checksums=whole.checksums[:1])


def test_epochs_shorter_than_a_shard_have_other_samples_of_it_each_time(digits):
    shards = one_shard(digits)
    with train_loader(shards, AS_IS, options(10), seed=0, steps=2) as loader:
        epochs = [labels_and_sums(loader.epoch(number)) for number in range(60)]
    everything = {pair for _, pair, _ in evaluated(shards, 1, 0)}
    assert all(len(set(epoch)) == 20 for epoch in epochs)
    assert len({frozenset(epoch) for epoch in epochs}) == 60
    assert set().union(*epochs) == everything


@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_workers_that_share_shards_have_each_sample_once(digits, ranks):
    for shards in (one_shard(digits), read_shards(digits, "val")):
        share, seen = shards.total // ranks, []
        for rank in range(ranks):
            loader = train_loader(shards, AS_IS, options(1, rank=rank, world_size=ranks), seed=2, steps=share)
            seen += labels_and_sums(loader.epoch(3))
        if len(shards.paths) < ranks or ranks == 1:
            assert len(set(seen)) == share * ranks


def test_more_workers_than_samples_have_samples_all_the_same(digits):
    how = options(1)
    stream = TrainReader(shards=one_shard(digits), transform=AS_IS, seed=0, steps=1, **how.for_reader())
    first, *_ = islice(stream._endless(0, 130, 200), 3)
    again, *_ = islice(stream._endless(0, 30, 200), 1)
    assert first.key != again.key


@pytest.mark.parametrize(("total", "wanted"), [(359, 256), (10, 3), (7, 7), (5, 100), (50_000, 256)])
def test_a_subset_has_one_example_of_each_stretch(total, wanted):
    chosen = spread(total, wanted)
    wanted = min(total, wanted)
    edges = [number * total // wanted for number in range(wanted + 1)]
    assert all(low <= number < high for low, number, high in zip(edges[:-1], chosen, edges[1:], strict=True))
    assert list(chosen) == list(spread(total, wanted))


def test_a_subset_of_classes_that_come_in_turn_has_all_of_them():
    assert {number % 10 for number in spread(5000, 500)} == set(range(10))


def test_fewer_images_than_one_global_batch_are_refused(digits):
    with pytest.raises(UsageError, match="359 val images"):
        train_loader(read_shards(digits, "val"), AS_IS, options(200, world_size=2), seed=0, steps=1)


def test_images_are_normalized(digits):
    loader = eval_loader(read_shards(digits, "val"), AS_IS, options(359))
    (batch,) = loader.epoch()
    black = (0 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(batch.images.amin(dim=(0, 2, 3)), black)


def test_val_is_divided_where_there_is_no_test_split(digits, tmp_path):
    val, test = evaluation_splits(digits)
    assert (val.part, val.total, test.split, test.total) == ((0, 1), 359, "test", 180)
    for path in digits.glob("val-*.tar"):
        shutil.copy(path, tmp_path)
    val, test = evaluation_splits(tmp_path)
    whole = read_shards(tmp_path, "val")
    assert (val.split, val.total, test.split, test.total) == ("val", 180, "test", 179)
    everything = evaluated(whole, 1, 0)
    for part, first in ((val, 0), (test, 1)):
        for ranks in (1, 3):
            found = evaluated(part, ranks, 0)
            assert [pair for _, pair, _ in found] == [pair for _, pair, _ in everything][first::2]
            assert [index for index, *_ in found] == list(range(part.total))


def test_unfinished_test_shards_are_not_passed_over(digits, tmp_path):
    for path in digits.glob("val-*.tar"):
        shutil.copy(path, tmp_path)
    (tmp_path / ".test.json").write_text("{}")
    with pytest.raises(UsageError, match="test shards are unfinished"):
        evaluation_splits(tmp_path)


def test_a_pickle_in_a_shard_is_not_opened(tmp_path, digits):
    with tarfile.open(tmp_path / "train-000000.tar", "w") as out, tarfile.open(digits / "val-000000.tar") as source:
        for member in source.getmembers()[:4]:
            out.addfile(member, source.extractfile(member))
            evil = tarfile.TarInfo(member.name.rpartition(".")[0] + ".pyd")
            evil.size = 4
            out.addfile(evil, io.BytesIO(b"cos\n"))
    shards = read_shards(tmp_path, "train")
    assert shards.total == 2
    (batch,) = eval_loader(shards, AS_IS, options(4)).epoch()
    assert batch.images.shape == (2, 3, 32, 32)
