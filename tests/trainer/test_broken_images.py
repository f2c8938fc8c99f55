"""Images that cannot be decoded: a few are left out and counted, more end the training by name."""

import contextlib
import dataclasses
import io
import shutil
import tarfile

import pytest
import torch
from PIL import Image
from streams import AS_IS, options

from trainer.broken_images import refuse_broken
from trainer.config import UsageError
from trainer.data import eval_loader, spread, train_loader
from trainer.shards import Sample, encode_jpeg, read_shards, write_shards


def spoil(path, broken=(), keep=None):
    """Make some images of a shard unreadable, or cut it after a number of samples."""
    whole = path.rename(path.with_suffix(".whole"))
    with tarfile.open(whole) as old, tarfile.open(path, "w") as new:
        members = old.getmembers()
        for number, member in enumerate(members[: None if keep is None else 2 * keep]):
            data = old.extractfile(member).read()
            if member.name.endswith(".jpg") and number // 2 in broken:
                data = data[: len(data) // 2]
                member.size = len(data)
            new.addfile(member, io.BytesIO(data))
    whole.unlink()


@pytest.fixture
def many(tmp_path):
    """2,000 samples in two shards without meta.json."""
    jpeg = encode_jpeg(Image.new("RGB", (8, 8), (200, 10, 10)))
    write_shards((Sample(f"{i:04d}", jpeg, i % 3) for i in range(2000)), tmp_path, "val", ["a", "b", "c"], "test")
    (tmp_path / "meta.json").unlink()
    return tmp_path


def test_a_few_broken_images_are_left_out_and_counted(many):
    spoil(many / "val-000001.tar", broken=(3, 7))
    shards = read_shards(many, "val")
    batches = list(eval_loader(shards, AS_IS, options(500)).epoch())
    images = torch.cat([batch.images for batch in batches])
    bad = images.isnan().flatten(1).all(1)
    assert bad.nonzero().flatten().tolist() == [1003, 1007]
    assert images[~bad].isfinite().all()


def test_the_first_image_may_be_broken(many):
    spoil(many / "val-000000.tar", broken=(0, 1))
    (first, *_) = eval_loader(read_shards(many, "val"), AS_IS, options(500)).epoch()
    assert first.images.shape == (500, 3, 8, 8)
    assert first.indices.tolist() == list(range(500))
    assert first.images.isnan().flatten(1).all(1).nonzero().flatten().tolist() == [0, 1]


def test_more_broken_images_stop_with_the_shard_named(many):
    spoil(many / "val-000001.tar", broken=(3, 7, 9))
    with pytest.raises(UsageError, match=r"val-000001.tar: image 1009 cannot be decoded .*more than 0.1%"):
        list(eval_loader(read_shards(many, "val"), AS_IS, options(500)).epoch())


def trained(shards, steps, batch_size=64, seeds=range(1)):
    """Broken images in epochs of every seed."""
    found = []
    for seed in seeds:
        loader = train_loader(shards, AS_IS, options(batch_size), seed=seed, steps=steps)
        found.append(sum(int(batch.images.isnan().flatten(1).all(1).sum()) for batch in loader.epoch()))
    return found


def test_the_limit_of_an_epoch_of_training_is_that_of_the_split(many):
    spoil(many / "val-000001.tar", broken=(3, 7))
    shards = read_shards(many, "val")
    assert set(trained(shards, steps=8, seeds=range(12))) >= {0, 1}
    assert trained(shards, steps=40, batch_size=50) == [2]
    assert trained(shards, steps=120, batch_size=50) == [6], "three passes"
    spoil(many / "val-000000.tar", broken=(5,))
    with pytest.raises(UsageError, match=r"cannot be decoded .*more than 0.1% of the 2000 val images are broken"):
        trained(read_shards(many, "val"), steps=40, batch_size=50)


def test_a_large_split_that_is_broken_is_refused_early(many, monkeypatch):
    monkeypatch.setattr("trainer.broken_images.MAX_BROKEN", 0.9)  # so many are not read here
    for name in ("val-000000.tar", "val-000001.tar"):
        spoil(many / name, broken=[number for number in range(1000) if number % 10])
    with pytest.raises(UsageError, match=r"cannot be decoded .*33 of the first 3\d val images are broken"):
        trained(read_shards(many, "val"), steps=4)


@pytest.mark.parametrize(
    ("broken", "asked", "passes", "refused"),
    [(2, 2000, 1, False), (3, 2000, 1, True), (2, 64, 1, False), (4, 3000, 2, False), (33, 64, 1, True)],
)
def test_broken_images_over_all_workers_are_a_fraction_of_the_split(many, broken, asked, passes, refused):
    with pytest.raises(UsageError, match=f"{broken} of {asked} val") if refused else contextlib.nullcontext():
        refuse_broken(float(broken), asked, read_shards(many, "val"), passes)


def test_the_limit_of_a_subset_is_that_of_its_split(many):
    (chosen, *_) = (number for number in spread(2000, 256) if number >= 1000)
    spoil(many / "val-000001.tar", broken=(chosen - 1000,))
    loader = eval_loader(read_shards(many, "val"), AS_IS, options(100), examples=256)
    broken = [index for batch in loader.epoch() for index in batch.indices[batch.images.isnan().flatten(1).all(1)]]
    assert broken == [chosen]


@pytest.mark.parametrize("ranks", [1, 2])
def test_examples_come_once_where_a_rank_has_broken_images_alone(many, ranks):
    """Whose size nothing says: the last batch, which the second rank has to itself."""
    spoil(many / "val-000001.tar", broken=(998, 999))
    shards = dataclasses.replace(read_shards(many, "val"), part=(1996, 1))
    seen, broken = [], []
    for rank in range(ranks):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("trainer.broken_images.MAX_BROKEN", 0.5)
            for batch in eval_loader(shards, AS_IS, options(2, rank=rank, world_size=ranks)).epoch():
                seen += batch.indices.tolist()
                broken += batch.indices[batch.images.isnan().flatten(1).all(1)].tolist()
    assert seen == [0, 1, 2, 3]
    assert broken == [2, 3]


def test_a_short_or_truncated_shard_is_an_error_in_training_and_evaluation(tmp_path, digits):
    for path in digits.iterdir():
        shutil.copy(path, tmp_path)
    shards = read_shards(tmp_path, "val")

    def streams():
        yield train_loader(shards, AS_IS, options(50), seed=0, steps=7).epoch()
        yield eval_loader(shards, AS_IS, options(50)).epoch()

    spoil(tmp_path / "val-000002.tar", keep=60)
    for batches in streams():
        with pytest.raises(UsageError, match=r"val-000002.tar: ends after 60 samples, it should have 100"):
            list(batches)
    whole = (digits / "val-000002.tar").read_bytes()
    (tmp_path / "val-000002.tar").write_bytes(whole[: len(whole) // 2 + 100])
    for batches in streams():
        with pytest.raises(UsageError, match=r"val-000002.tar: damaged after \d+ samples"):
            list(batches)
