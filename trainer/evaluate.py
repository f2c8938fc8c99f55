"""Metrics of a model over a split: every example exactly once, sums over all workers.

Keys are `split/name`. Accuracy and loss are over the whole split; the attack and the heatmaps, which cost
backward passes, over its first `robust_images` examples: the same for every trial of a sweep.
"""

import torch
from torch import nn

from trainer.config import Trial
from trainer.data import eval_loader
from trainer.distributed import rank, sum_over_workers, world_size
from trainer.heatmaps import heatmap, similarity
from trainer.robustness import pgd
from trainer.shards import Shards


def evaluate(model: nn.Module, shards: Shards, trial: Trial, device: torch.device) -> dict[str, float]:
    """Accuracy and loss (nats), accuracy under PGD, and heatmap similarity of one split.

    Args:
        model: the bare model, not its DDP wrapper (ranks may see unequal numbers of batches).
        shards: the split.
        trial: gives batch size, attack and seed.
        device: where the model is.
    """
    model.eval()
    sums = dict.fromkeys(
        ("examples", "correct", "loss", "explained", "robust", "heatmap_ssim", "heatmap_correlation"), 0.0
    )
    share = len(range(rank(), min(trial.robust_images, shards.total), world_size()))
    generator = torch.Generator().manual_seed(trial.seed + rank())
    loader = eval_loader(
        shards, rank=rank(), world_size=world_size(), batch_size=trial.batch_size, loader_workers=trial.loader_workers
    )
    for on_cpu in loader.epoch():
        batch = on_cpu.to(device)
        with torch.no_grad():
            logits = model(batch.images)
        sums["examples"] += len(batch.labels)
        sums["correct"] += float((logits.argmax(1) == batch.labels).sum())
        sums["loss"] += float(nn.functional.cross_entropy(logits.double(), batch.labels, reduction="sum"))
        left = share - int(sums["explained"])
        if left > 0:
            images, labels = batch.images[:left], batch.labels[:left]
            attacked = pgd(model, images, labels, eps=trial.pgd_eps, steps=trial.pgd_steps, generator=generator)
            with torch.no_grad():
                sums["robust"] += float((model(attacked).argmax(1) == labels).sum())
            for name, values in similarity(heatmap(model, images, labels), images).items():
                sums[name] += float(values.double().sum())
            sums["explained"] += len(labels)
    total = sum_over_workers(sums, device)
    split, n, m = shards.split, total["examples"], total["explained"]
    return {
        f"{split}/accuracy": total["correct"] / n,
        f"{split}/loss": total["loss"] / n,
        f"{split}/robust_accuracy": total["robust"] / m,
        f"{split}/heatmap_ssim": total["heatmap_ssim"] / m,
        f"{split}/heatmap_correlation": total["heatmap_correlation"] / m,
        f"{split}/examples": n,
    }
