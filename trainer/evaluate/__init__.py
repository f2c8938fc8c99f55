"""Metrics of a model over a split: every example exactly once, sums over all workers.

Keys are `split/name`. Accuracy and loss are over the whole split; the attack and the heatmaps, which cost
backward passes, over `robust_images` examples spread
evenly over it: the same for every trial of a sweep and any number of workers.
"""

import torch
from torch import Tensor, nn

from regularizers.base import finite_examples
from trainer.cache import ShardCache
from trainer.config import Trial
from trainer.data import eval_loader, spread
from trainer.distributed import rank, sum_over_workers, world_size
from trainer.evaluate.heatmaps import heatmap, similarity
from trainer.evaluate.robustness import pgd
from trainer.preprocess import Transform
from trainer.shards import Shards


def evaluate(
    model: nn.Module, shards: Shards, trial: Trial, device: torch.device, cache: ShardCache | None = None
) -> dict[str, float]:
    """Accuracy and loss (nats), accuracy under PGD, and heatmap similarity of one split.

    Args:
        model: the bare model, not its DDP wrapper (ranks may see unequal numbers of batches).
        shards: the split.
        trial: gives batch size, attack and seed.
        device: where the model is.
        cache: of remote shards.

    Raises:
        UsageError: if too many images cannot be decoded; the few that may are left out.
    """
    model.eval()
    counts = ("examples", "broken", "correct", "loss", "explained", "robust")
    likeness = ("heatmap_ssim", "heatmap_correlation", "heatmap_psnr", "heatmap_psnr_hvs")
    sums = dict.fromkeys((*counts, *likeness), 0.0)
    loader = eval_loader(
        shards,
        Transform(trial.image_size, train=False),
        rank=rank(),
        world_size=world_size(),
        batch_size=trial.batch_size,
        loader_workers=trial.loader_workers,
        device=device,
        cache=cache,
    )
    with loader:
        for batch in loader.epoch():
            assert batch.indices is not None
            whole = finite_examples(batch.images)
            images, labels, indices = batch.images[whole], batch.labels[whole], batch.indices[whole.cpu()]
            sums["broken"] += len(whole) - len(labels)
            sums["examples"] += len(labels)
            with torch.no_grad():
                logits = model(images)
            sums["correct"] += float((logits.argmax(1) == labels).sum())
            sums["loss"] += float(nn.functional.cross_entropy(logits.double(), labels, reduction="sum"))
            chosen = spread(indices, shards.total, trial.robust_images)
            if not chosen.any():
                continue
            start = [_noise(trial.seed, index, images[0]) for index in indices[chosen].tolist()]
            images, labels = images[chosen.to(device)], labels[chosen.to(device)]
            attacked = pgd(model, images, labels, eps=trial.pgd_eps, steps=trial.pgd_steps, start=torch.stack(start))
            with torch.no_grad():
                sums["robust"] += float((model(attacked).argmax(1) == labels).sum())
            for name, values in similarity(heatmap(model, images, labels), images).items():
                sums[name] += float(values.double().sum())
            sums["explained"] += len(labels)
    total = sum_over_workers(sums, device)
    split, n, m = shards.split, total["examples"], max(total["explained"], 1)
    return {
        f"{split}/accuracy": total["correct"] / n,
        f"{split}/loss": total["loss"] / n,
        f"{split}/robust_accuracy": total["robust"] / m,
        f"{split}/heatmap_ssim": total["heatmap_ssim"] / m,
        f"{split}/heatmap_correlation": total["heatmap_correlation"] / m,
        f"{split}/examples": n,
        f"{split}/broken_examples": total["broken"],
    }


def _noise(seed: int, index: int, like: Tensor) -> Tensor:
    """Uniform numbers in [0, 1) that belong to one example, on whatever worker it lands."""
    generator = torch.Generator().manual_seed(hash((seed, index)) % 2**63)
    return torch.rand(like.shape, generator=generator).to(like)
