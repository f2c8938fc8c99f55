"""The few facts of torch.distributed a trial needs; everything works in a single process too."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from trainer.retryable import LostWorkerError

# Gloo's errors, and NCCL's within a backward pass, reach Python as a RuntimeError: only their text identifies them.
LOST = ("gloo", "nccl", "connection")


def rank() -> int:
    """Rank of this worker, 0 in a single process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of workers, 1 in a single process."""
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_workers(sums: dict[str, float], device: torch.device) -> dict[str, float]:
    """Each value summed over all workers; the keys must be the same everywhere."""
    if not dist.is_initialized():
        return sums
    names = sorted(sums)
    values = torch.tensor([sums[name] for name in names], dtype=torch.float64, device=device)
    dist.all_reduce(values)
    return dict(zip(names, values.tolist(), strict=True))


def gather_over_workers(value: Any, device: torch.device) -> list[Any]:
    """The values of all workers, by rank; plain types, sent through `device`."""
    if not dist.is_initialized():
        return [value]
    everywhere = []
    for source in range(world_size()):  # all_gather_object would take the process's default device
        box = [value]
        dist.broadcast_object_list(box, src=source, device=device)
        everywhere.append(box[0])
    return everywhere


def data_parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """The model wrapped for DDP where there are several workers."""
    if not dist.is_initialized():
        return model
    ids = [device.index] if device.type == "cuda" else None
    # Running statistics are per worker under `flow` and fixed under `frozen`: rank 0's are the ones saved.
    return DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False)


@contextmanager
def name_lost_workers() -> Iterator[None]:
    """Give errors of lost connections between workers a type of their own.

    Raises:
        LostWorkerError: in place of PyTorch's RuntimeError.
    """
    try:
        yield
    except RuntimeError as error:
        if any(word in str(error).lower() for word in LOST):
            raise LostWorkerError(str(error)) from error
        raise
