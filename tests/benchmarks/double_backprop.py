"""What a regularized training step costs in seconds and memory, as a multiple of the plain step of the same run.

    python tests/benchmarks/double_backprop.py                            # resnet18, 96 px, batch 16, CPU, one thread
    python tests/benchmarks/double_backprop.py --device cuda --model resnet50 --size 224 --batch 128 \
        --precision bfloat16 --channels-last --compile

Prints a table: per regularizer the median over rounds of (its step ÷ the plain step of the same round) and the ratio of
the peak memory a step allocates. The floor is 2.0: with convolutions alone, a plain step passes through each of them
3 times (forward, input gradient, weight gradient), a regularized one 6 times.
"""

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from regularizers import REGULARIZERS
from trainer.config import BatchNorm, Precision
from trainer.data import Batch
from trainer.models import build_model
from trainer.step import CompiledLoss, RegularizedLoss, set_mode, train_step


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=96, help="side of the images in pixels")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--batch-norm", choices=get_args(BatchNorm), default="frozen")
    parser.add_argument("--precision", choices=get_args(Precision), default="float32")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--compile", action="store_true", help="also the compiled plain and regularized steps")
    parser.add_argument("--stock", action="store_true", help="also with PyTorch's own second derivatives")
    parser.add_argument("--regularizers", default=",".join(sorted(REGULARIZERS)))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    return parser.parse_args()


class StockLoss(RegularizedLoss):
    """The same loss without this project's convolution and batch norm."""

    def forward_pass(self, images, labels, generator=None):
        from regularizers import Forward

        images = images.detach().requires_grad_(self.regularizer.needs_heatmap)
        return Forward(images, labels, self._logits(images), generator)


def make_step(given: argparse.Namespace, kind: type[RegularizedLoss], name: str) -> Callable[[], None]:
    """One training step of a model of its own."""
    torch.manual_seed(0)
    device = torch.device(given.device)
    layout = torch.channels_last if given.channels_last else torch.contiguous_format
    model = build_model(given.model, 1000).to(device).to(memory_format=layout)
    set_mode(model, given.batch_norm)
    loss = kind(model, REGULARIZERS[name](weight=1e-3), batch_norm=given.batch_norm, precision=given.precision)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9, nesterov=True)
    images = torch.randn(given.batch, 3, given.size, given.size, device=device).contiguous(memory_format=layout)
    batch = Batch(images, torch.randint(1000, (given.batch,), device=device))
    generator = torch.Generator().manual_seed(0)
    return lambda: train_step(loss, batch, optimizer, clip_norm=2.0, generator=generator) and None


def seconds(step: Callable[[], None], device: str) -> float:
    """Processor time on a CPU, where others may be at work; wall time on a GPU."""
    if device == "cpu":
        started = time.process_time()
        step()
        return time.process_time() - started
    torch.cuda.synchronize()
    started = time.perf_counter()
    step()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def peak_memory(step: Callable[[], None], device: str) -> int:
    """Most bytes a step holds at once beyond what it found."""
    gc.collect()
    if device != "cpu":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    held = peak = 0
    events = (e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]")
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def main() -> None:
    given = parse()
    torch.set_num_threads(given.threads)
    names = [name for name in given.regularizers.split(",") if name != "none"]
    kinds = {"": RegularizedLoss} | ({"stock": StockLoss} if given.stock else {})
    kinds |= {"compiled": CompiledLoss} if given.compile else {}
    table: dict[tuple[str, str], tuple[list[float], int]] = {}
    for label, kind in kinds.items():
        for name in ["none", *names]:  # a model at a time, beside the plain one: memory stays small
            plain, step = make_step(given, kind, "none"), make_step(given, kind, name)
            for warm in (plain, step, plain, step):
                warm()
            times = [(seconds(plain, given.device), seconds(step, given.device)) for _ in range(given.rounds)]
            table[label, name] = [b / a for a, b in times], peak_memory(step, given.device)
            base = table[label, "none"][1]
            ratios, memory = table[label, name]
            row = f"{label} {name}".strip()
            print(
                f"| {row:24} | {statistics.median(ratios):5.2f} | {min(ratios):5.2f} … {max(ratios):5.2f} "
                f"| {memory / base:5.2f} | {statistics.median(a for a, _ in times) * 1e3:7.1f} ms |",
                flush=True,
            )
            torch._dynamo.reset()


if __name__ == "__main__":
    print(f"torch {torch.__version__}, {' '.join(sys.argv[1:]) or 'defaults'}")
    print("| regularizer              | ratio | min … max     | memory | plain step |")
    print("|---|---|---|---|---|")
    main()
