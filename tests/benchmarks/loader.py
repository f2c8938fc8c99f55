"""What each stage from encoded image to network input takes and how far its pixels are from the exact ones.

    python tests/benchmarks/loader.py                        # photographs made from the two that scikit-learn ships
    python tests/benchmarks/loader.py --images FOLDER        # JPEGs below a folder
    python tests/benchmarks/loader.py --images SHARD.tar

Prints a table for each stage: of every way to do it the milliseconds for an image, their ratio to the first row's
(median over rounds in which every way takes its turn, processor time of one thread), and the deviation of its pixels
from the exact ones (Pillow's pixels, the original's bicubic kernel) in gray levels: mean, and the most of any pixel.
"""

import argparse
import io
import statistics
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import simplejpeg
import sklearn.datasets
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from trainer.preprocess import Transform, Window, _kernel, central_window, decode, random_window, resize

Stage = Callable[[Any], Tensor | np.ndarray]  # of one item; pixels (h, w, 3) or (3, h, w), uint8
SUFFIXES = (".jpg", ".jpeg")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--images", type=Path, help="folder or shard of JPEGs")
    parser.add_argument("--limit", type=int, default=200, help="images at most")
    parser.add_argument("--size", type=int, default=224, help="side of the output in pixels")
    parser.add_argument("--rounds", type=int, default=7)
    return parser.parse_args()


def photographs(source: Path | None, limit: int) -> list[bytes]:
    """JPEG files from a shard or a folder; without a source cut from scikit-learn's photographs at ImageNet's size."""
    if source is None:
        random, folder = Random(0), Path(sklearn.datasets.__file__).parent / "images"
        originals = [Image.open(folder / name).convert("RGB") for name in ("china.jpg", "flower.jpg")]
        return [cut(random.choice(originals), random) for _ in range(min(limit, 60))]
    if source.suffix == ".tar":
        with tarfile.open(source) as shard:
            names = [name for name in shard.getnames() if name.lower().endswith(SUFFIXES)][:limit]
            return [shard.extractfile(name).read() for name in names]
    files = sorted(path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES)[:limit]
    return [path.read_bytes() for path in files]


def cut(photograph: Image.Image, random: Random) -> bytes:
    """A random part as a JPEG of 500 x 375 pixels and ImageNet's usual quality (110 KB on average there)."""
    width = random.randint(400, 640)
    height = width * 3 // 4
    left, top = random.randint(0, 640 - width), random.randint(0, max(0, 427 - height))
    part = photograph.resize((500, 375), Image.Resampling.BICUBIC, (left, top, left + width, min(427, top + height)))
    buffer = io.BytesIO()
    part.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


# Decoding: encoded bytes to pixels


def pillow(encoded: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(encoded)) as image:
        return np.array(image.convert("RGB"))


def pillow_draft(encoded: bytes) -> np.ndarray:
    """Scaled while decoding, by 1/2, 1/4 or 1/8, as far as the image stays as large as the output."""
    with Image.open(io.BytesIO(encoded)) as image:
        image.draft("RGB", (224, 224))
        return np.array(image.convert("RGB"))


def turbo(encoded: bytes) -> np.ndarray:
    return simplejpeg.decode_jpeg(encoded, "RGB")


def turbo_fast(encoded: bytes) -> np.ndarray:
    return simplejpeg.decode_jpeg(encoded, "RGB", fastdct=True, fastupsample=True)


def turbo_scaled(encoded: bytes) -> np.ndarray:
    """Scaled while decoding, by eighths, as far as the image stays as large as the output."""
    return simplejpeg.decode_jpeg(encoded, "RGB", min_height=224, min_width=224)


# Resizing: (pixels, window, size) to pixels of the output's size

Cut = tuple[Tensor, Window, int]


def cropped(item: Cut) -> Tensor:
    pixels, (top, left, height, width), _ = item
    return pixels[top : top + height, left : left + width]


def gather_numpy(item: Cut) -> np.ndarray:
    """The four rows, then the four columns, of each row and column of the output."""
    pixels, size = cropped(item).numpy(), item[2]
    for axis in (0, 1):
        taps, weights = (tensor.numpy() for tensor in _kernel(pixels.shape[axis], size))
        weights = weights[:, :, None, None] if axis == 0 else weights[:, :, None]
        taken = (np.take(pixels, taps[:, tap], axis) * weights[:, tap] for tap in range(4))
        pixels = sum(taken)
    return np.rint(pixels).clip(0, 255).astype(np.uint8)


def matrices(item: Cut) -> Tensor:
    """Two products with the kernel as a dense matrix."""
    pixels, size = cropped(item), item[2]
    dense = [torch.zeros(size, side).scatter_add_(1, *_kernel(side, size)) for side in pixels.shape[:2]]
    rows = (dense[0] @ pixels.reshape(len(pixels), -1).float()).view(size, -1, 3).permute(2, 0, 1)
    return (rows @ dense[1].T).round_().clamp_(0, 255).to(torch.uint8)


def embedding_bags(item: Cut) -> Tensor:
    return resize(cropped(item), item[2], item[2])


def torch_bicubic(item: Cut, antialias: bool = False) -> Tensor:
    pixels = cropped(item).permute(2, 0, 1)[None]
    return interpolate(pixels, (item[2], item[2]), mode="bicubic", antialias=antialias)[0].contiguous()


def torch_antialiased(item: Cut) -> Tensor:
    return torch_bicubic(item, antialias=True)


def pillow_antialiased(item: Cut) -> np.ndarray:
    pixels, (top, left, height, width), size = item
    image = Image.fromarray(pixels.numpy())  # a copy that a pipeline of Pillow alone would not make: 0.1 ms
    return np.array(image.resize((size, size), Image.Resampling.BICUBIC, (left, top, left + width, top + height)))


# Everything: (encoded bytes, window, size) to pixels of the output's size


def pillow_throughout(item: tuple[bytes, Window, int]) -> np.ndarray:
    """As torchvision's transforms work on Pillow's images."""
    encoded, (top, left, height, width), size = item
    with Image.open(io.BytesIO(encoded)) as image:
        window = image.convert("RGB").crop((left, top, left + width, top + height))
    return np.ascontiguousarray(np.array(window.resize((size, size), Image.Resampling.BICUBIC)).transpose(2, 0, 1))


def pillow_and_numpy(item: tuple[bytes, Window, int]) -> np.ndarray:
    encoded, window, size = item
    return gather_numpy((torch.from_numpy(pillow(encoded)), window, size))


def scaled_throughout(item: tuple[bytes, Window, int]) -> Tensor:
    """Scaled while decoding as far as the window stays as large as the output."""
    encoded, window, size = item
    height, width, _, _ = simplejpeg.decode_jpeg_header(encoded)
    least = (max(1, side * size // part) for side, part in ((height, window[2]), (width, window[3])))
    pixels = torch.from_numpy(simplejpeg.decode_jpeg(encoded, "RGB", min_height=next(least), min_width=next(least)))
    scale = len(pixels) / height
    top, left, rows, columns = (round(side * scale) for side in window)
    return embedding_bags((pixels, (top, left, max(1, rows), max(1, columns)), size))


def ours(item: tuple[bytes, Window, int]) -> Tensor:
    encoded, window, size = item
    return embedding_bags((decode(encoded), window, size))


def milliseconds(stages: dict[str, Stage], items: Sequence[Any], rounds: int) -> dict[str, list[float]]:
    """Processor time for an item, by stage and round; all stages take turns in every round."""
    times: dict[str, list[float]] = {name: [] for name in stages}
    for number in range(-1, rounds):  # the first warms up
        for name, stage in stages.items():
            started = time.process_time()
            for item in items:
                stage(item)
            if number >= 0:
                times[name].append((time.process_time() - started) / len(items) * 1e3)
    return times


def deviations(stage: Stage, exact: Stage, items: Sequence[Any]) -> tuple[float, float] | None:
    """Mean and largest difference in gray levels; None where the sizes differ."""
    means, largest = [], 0.0
    for item in items:
        pixels, truth = (last_channels(run(item)) for run in (stage, exact))
        if pixels.shape != truth.shape:
            return None
        difference = np.abs(pixels - truth)
        means.append(difference.mean())
        largest = max(largest, difference.max())
    return statistics.mean(means), largest


def last_channels(pixels: Tensor | np.ndarray) -> np.ndarray:
    array = np.asarray(pixels, dtype=np.float32)
    return array if array.shape[2] == 3 else array.transpose(1, 2, 0)


def table(title: str, stages: dict[str, Stage], exact: Stage, items: Sequence[Any], rounds: int) -> None:
    """Times as ratios to the first stage, and pixels against the exact ones."""
    times = milliseconds(stages, items, rounds)
    base = next(iter(times.values()))
    print(f"\n| {title} | ms | time | deviation, mean | most |\n|---|---|---|---|---|")
    for name, stage in stages.items():
        ratio = statistics.median(own / first for own, first in zip(times[name], base, strict=True))
        found = deviations(stage, exact, items)
        pixels = f"{found[0]:.2f} | {found[1]:.0f}" if found else "another size | "
        print(f"| {name} | {statistics.median(times[name]):.2f} | {ratio:.2f} | {pixels} |", flush=True)


def main() -> None:
    given = parse()
    torch.set_num_threads(1)
    encoded = photographs(given.images, given.limit)
    random, windows = Random(0), []
    decoded = [decode(image) for image in encoded]
    for pixels in decoded:
        height, width, _ = pixels.shape
        windows.append(random_window(height, width, random) or central_window(height, width, given.size))
    print(
        f"{len(encoded)} images, {statistics.mean(map(len, encoded)) / 1e3:.0f} KB and "
        f"{statistics.mean(len(p) * p.shape[1] for p in decoded) / 1e6:.2f} megapixels in the mean, to {given.size} px"
    )
    decoders: dict[str, Stage] = {
        "Pillow": pillow,
        "Pillow, draft": pillow_draft,
        "simplejpeg": turbo,
        "simplejpeg, fast DCT and upsampling": turbo_fast,
        "simplejpeg, scaled": turbo_scaled,
        "ours (simplejpeg, else Pillow)": decode,
    }
    table("decoding", decoders, pillow, encoded, given.rounds)
    resizers: dict[str, Stage] = {
        "four taps, numpy": gather_numpy,
        "dense matrices": matrices,
        "ours (embedding bags)": embedding_bags,
        "torch, bicubic": torch_bicubic,
        "torch, antialiased": torch_antialiased,
        "Pillow, antialiased": pillow_antialiased,
    }
    cuts = [(pixels, window, given.size) for pixels, window in zip(decoded, windows, strict=True)]
    table("cropping and resizing", resizers, gather_numpy, cuts, given.rounds)
    whole: dict[str, Stage] = {
        "Pillow, numpy": pillow_and_numpy,
        "Pillow, antialiased": pillow_throughout,
        "simplejpeg, scaled": scaled_throughout,
        "ours": ours,
    }
    jobs = [(image, window, given.size) for image, window in zip(encoded, windows, strict=True)]
    table("decoding, cropping, resizing", whole, pillow_and_numpy, jobs, given.rounds)
    transforms: dict[str, Stage] = {
        "training": lambda image: Transform(given.size, train=True)(image, Random("0/0/key")),
        "evaluation": lambda image: Transform(given.size, train=False)(image, Random(0)),
    }
    times = milliseconds(transforms, encoded, given.rounds)
    for name, rounds in times.items():
        print(f"\n{name}: {1e3 / statistics.median(rounds):.0f} images a second on one thread")


if __name__ == "__main__":
    main()
