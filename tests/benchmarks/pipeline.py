"""Images a second that the stream delivers, against other ways to have the same batches.

    python tests/benchmarks/pipeline.py                     # photographs made from the two that scikit-learn ships
    python tests/benchmarks/pipeline.py --images FOLDER     # JPEGs below a folder

Prints a table: processor time of an image in one process and the stream's speed as a multiple of each other way's
(median over rounds in which every way takes its turn).

- decode and crop alone: our own transform over bytes in memory, what no pipeline on top of it can beat
- DataLoader over a class folder: Pillow's decoder and antialiased crop, as torchvision's tutorials do it
- webdataset's stock pipeline: the same shards, its own shuffle and `decode("pil")`, the same crop
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import numpy as np
import torch
import webdataset as wds
from loader import parse, photographs
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from trainer.data import LoaderOptions, train_loader
from trainer.normalization import IMAGENET
from trainer.preprocess import Transform, central_window, random_window
from trainer.readers import TrainReader
from trainer.shards import Sample, write_shards

BATCH = 32


def crop(image: Image.Image, size: int, random: Random) -> Tensor:
    """Random resized crop, flip, tensor, normalized: one image after the other."""
    image = image.convert("RGB")
    top, left, height, width = random_window(image.height, image.width, random) or central_window(
        image.height, image.width, size
    )
    image = image.resize((size, size), Image.Resampling.BICUBIC, (left, top, left + width, top + height))
    if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(255)
    return (pixels - torch.tensor(IMAGENET.mean)[:, None, None]) / torch.tensor(IMAGENET.std)[:, None, None]


class Folder(Dataset):
    def __init__(self, folder: Path, size: int) -> None:
        self.files, self.size, self.random = sorted(folder.rglob("*.jpg")), size, Random(0)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with Image.open(self.files[index]) as image:
            return crop(image, self.size, self.random), 0


def alone(encoded: list[bytes], size: int) -> Iterator[int]:
    transform = Transform(size, train=True)
    for number, image in enumerate(encoded):
        transform(image, Random(number))
        yield 1


def folder_loader(folder: Path, size: int) -> Iterator[int]:
    for images, _ in DataLoader(Folder(folder, size), BATCH, shuffle=True):
        yield len(images)


def stock(shards: list[str], size: int) -> Iterator[int]:
    random = Random(0)
    data = wds.WebDataset(shards, shardshuffle=100, nodesplitter=None, seed=0).shuffle(1000).decode("pil")
    data = data.to_tuple("jpg", "cls").map_tuple(lambda image: crop(image, size, random))
    for images, _ in DataLoader(data, BATCH):
        yield len(images)


def ours(shards, size: int) -> Iterator[int]:
    steps = shards.total // BATCH
    options = LoaderOptions(normalization=IMAGENET, batch_size=BATCH)
    with train_loader(shards, Transform(size, train=True), options, seed=0, steps=steps) as loader:
        for batch in loader.epoch(0):
            yield len(batch.labels)


def undelivered(shards, size: int) -> Iterator[int]:
    """What a loader process does; the main process normalizes, on the GPU where there is one."""
    transform = Transform(size, train=True)
    steps = shards.total // BATCH
    options = LoaderOptions(normalization=IMAGENET, batch_size=BATCH)
    reader = TrainReader(shards=shards, transform=transform, seed=0, steps=steps, **options.for_reader())
    for request in reader.requests(0):
        yield len(reader[request][1])


def main() -> None:
    given = parse()
    torch.set_num_threads(1)
    encoded = photographs(given.images, given.limit)
    encoded = (encoded * (256 // len(encoded) + 1))[:256]
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "images" / "class").mkdir(parents=True)
        for number, image in enumerate(encoded):
            (root / "images" / "class" / f"{number:04d}.jpg").write_bytes(image)
        samples = (Sample(f"{number:04d}", image, 0) for number, image in enumerate(encoded))
        shards = write_shards(samples, root / "shards", "train", ["class"], "benchmark", per_shard=64)
        ways: dict[str, Callable[[], Iterator[int]]] = {
            "ours": lambda: ours(shards, given.size),
            "ours, before normalizing": lambda: undelivered(shards, given.size),
            "decode and crop alone": lambda: alone(encoded, given.size),
            "DataLoader over a class folder": lambda: folder_loader(root / "images", given.size),
            "webdataset's stock pipeline": lambda: stock(list(shards.paths), given.size),
        }
        times: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(-1, given.rounds):  # the first warms up
            for way, run in ways.items():
                started = time.process_time()
                images = sum(run())
                if number >= 0:
                    times[way].append((time.process_time() - started) / images * 1e3)
    print(f"{len(encoded)} images to {given.size} px, batches of {BATCH}, one process")
    print("| way | ms an image | ours is … times as fast |\n|---|---|---|")
    for way, own in times.items():
        ratio = statistics.median(theirs / mine for theirs, mine in zip(own, times["ours"], strict=True))
        print(f"| {way} | {statistics.median(own):.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
