"""Shards and streams on the embedded digits."""

import io
import tarfile

import pytest
import torch

from trainer.config import UsageError
from trainer.data import eval_loader, train_loader
from trainer.shards import read_shards


def pairs(batches):
    for batch in batches:
        yield from zip(batch.images, batch.labels, strict=True)


def labels_and_sums(batches):
    return [(int(label), round(float(image.sum()), 3)) for image, label in pairs(batches)]


def evaluated(digits, ranks, workers):
    shards = read_shards(digits, "val")
    return sorted(
        pair
        for rank in range(ranks)
        for pair in labels_and_sums(
            eval_loader(shards, rank=rank, world_size=ranks, batch_size=50, loader_workers=workers).epoch()
        )
    )


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (2, 0), (3, 0), (4, 0), (2, 2)])
def test_evaluation_reads_every_example_once(digits, ranks, workers):
    found = evaluated(digits, ranks, workers)
    assert len(found) == read_shards(digits, "val").total == 359
    assert found == evaluated(digits, 1, 0)


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (2, 0), (5, 0), (2, 2)])
def test_training_takes_the_same_number_of_full_batches_on_every_rank(digits, ranks, workers):
    shards = read_shards(digits, "val")  # 4 shards: fewer than lanes in the last cases
    seen = []
    for rank in range(ranks):
        loader = train_loader(
            shards, rank=rank, world_size=ranks, seed=1, steps=3, batch_size=32, loader_workers=workers
        )
        batches = list(loader.epoch(0))
        assert [len(batch.labels) for batch in batches] == [32] * 3
        seen.append(labels_and_sums(batches))
    assert all(a != b for i, a in enumerate(seen) for b in seen[:i])


def test_order_is_a_function_of_seed_and_epoch(digits):
    def order(seed, epoch):
        loader = train_loader(
            read_shards(digits, "train"), rank=0, world_size=1, seed=seed, steps=2, batch_size=64, loader_workers=0
        )
        return labels_and_sums(loader.epoch(epoch))

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


def test_an_epoch_over_the_whole_split_sees_every_example_once(digits):
    shards = read_shards(digits, "val")
    loader = train_loader(shards, rank=0, world_size=1, seed=0, steps=359, batch_size=1, loader_workers=0)
    assert sorted(labels_and_sums(loader.epoch(0))) == evaluated(digits, 1, 0)


def test_a_pickle_in_a_shard_is_not_opened(tmp_path, digits):
    with tarfile.open(tmp_path / "train-000000.tar", "w") as out, tarfile.open(digits / "val-000000.tar") as source:
        for member in source.getmembers()[:4]:
            out.addfile(member, source.extractfile(member))
            evil = tarfile.TarInfo(member.name.rpartition(".")[0] + ".pyd")
            evil.size = 4
            out.addfile(evil, io.BytesIO(b"cos\n"))
    shards = read_shards(tmp_path, "train")
    assert shards.total == 2
    (batch,) = eval_loader(shards, rank=0, world_size=1, batch_size=4, loader_workers=0).epoch()
    assert batch.images.shape == (2, 3, 32, 32)


def test_fewer_images_than_one_global_batch_are_refused(digits):
    with pytest.raises(UsageError, match="359 val images"):
        train_loader(
            read_shards(digits, "val"), rank=0, world_size=2, seed=0, steps=1, batch_size=200, loader_workers=0
        )


def test_images_are_standardised(digits):
    loader = eval_loader(read_shards(digits, "val"), rank=0, world_size=1, batch_size=359, loader_workers=0)
    (batch,) = loader.epoch()
    black = (0 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(batch.images.amin(dim=(0, 2, 3)), black)
