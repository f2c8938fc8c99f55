"""Metrics of a model over a split; every example counts once, and the number of workers changes no digit.

Keys are `split/name`; docs/metrics.md defines them. Accuracy, loss and calibration are over the whole split, or as much
of it as the plan says; attacks and heatmaps, which cost many passes, over a subset, the same for all trials of a sweep.

    python -m trainer.evaluate --checkpoint CHECKPOINT --data SHARDS    # the full report of one model or several
"""

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterator
from hashlib import sha256
from itertools import repeat

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from regularizers.base import finite_examples
from trainer.cache import ShardCache
from trainer.config import Trial
from trainer.data import Batch, eval_loader, refuse_broken
from trainer.distributed import gather_over_workers, rank, world_size
from trainer.evaluate.corruptions import CORRUPTIONS, FAMILIES
from trainer.evaluate.faithfulness import agreement, insertion_deletion
from trainer.evaluate.heatmaps import Classify, heatmap, similarity, structure
from trainer.evaluate.noise import noisy
from trainer.evaluate.plan import Plan
from trainer.normalization import Normalization
from trainer.preprocess import Transform
from trainer.shards import Shards

SEVERITIES = range(1, 6)
BINS = 15  # of the calibration error, as in Guo et al.


def evaluate(
    model: nn.Module,
    shards: Shards,
    trial: Trial,
    plan: Plan,
    device: torch.device,
    cache: ShardCache | None = None,
    progress: Callable[[str, float], None] = lambda stage, done: None,
) -> dict[str, float]:
    """Measure what the plan says.

    Args:
        model: the bare model, not its DDP wrapper (ranks may see unequal numbers of batches).
        shards: the split.
        trial: gives batch size, image size, normalization, precision and the seed of attacks.
        plan: what to measure on how many examples.
        device: where the model is.
        cache: of remote shards.
        progress: told of what is done (fraction of 1) of each of the two passes.

    Raises:
        UsageError: if too many images cannot be decoded; the few that may are left out.
    """
    means = Means()

    def batches(examples: int | None, stage: str) -> Iterator[Batch]:
        loader = eval_loader(
            shards,
            Transform(trial.image_size, train=False),
            trial.normalization,
            rank=rank(),
            world_size=world_size(),
            batch_size=trial.batch_size,
            examples=examples,
            loader_workers=trial.loader_workers,
            device=device,
            cache=cache,
        )
        expected, seen = (shards.total if examples is None else min(examples, shards.total)) / world_size(), 0
        with loader:
            for batch in loader.epoch():
                assert batch.indices is not None
                whole = finite_examples(batch.images)
                means.count("broken_examples", float((~whole).sum()))
                seen += len(whole)
                if whole.any():
                    yield Batch(batch.images[whole], batch.labels[whole], batch.indices[whole.cpu()])
                progress(stage, min(seen / expected, 1.0))

    with classifier(model, trial.precision) as classify:
        for batch in batches(plan.examples, "accuracy"):
            with torch.no_grad():
                means.add(accuracy(classify(batch.images), batch.labels))
            means.count("examples", float(len(batch.labels)))
            if plan.majority:
                for label, number in Counter(batch.labels.tolist()).items():
                    means.count(f"class{label}", float(number))
        for batch in batches(plan.attacked, "robustness and heatmaps"):
            means.add(_detail(classify, batch, trial.normalization, trial.seed, plan))
            means.count("attacked_examples", float(len(batch.labels)))
    values = means.over_workers(device)
    for name, wanted in (("attacked_examples", plan.attacked), ("examples", plan.examples)):
        whole, asked = values.get(name, 0.0), shards.total if wanted is None else min(wanted, shards.total)
        if asked:
            refuse_broken(asked - whole, asked, shards)
        values["broken_examples"] = asked - whole
    values = _report(values, plan)
    return {f"{shards.split}/{name}": value for name, value in values.items()}


@contextlib.contextmanager
def classifier(model: nn.Module, precision: str) -> Iterator[Classify]:
    """The model as a function from images to float32 logits: evaluation mode, the training's precision.

    Meanwhile its weights want no gradient, so that attacks keep no activations for one (save those PyTorch's
    convolutions always keep).
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    modes = {module: module.training for module in model.modules()}

    def classify(images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            logits = model(images.clone())  # its first operation may be in place
        return logits.float() if logits.dtype.itemsize < 4 else logits

    with contextlib.suppress(NotImplementedError):  # an exported graph knows no other mode
        model.eval()
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield classify
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
        for module, mode in modes.items():
            module.training = mode


def accuracy(logits: Float[Tensor, "b k"], labels: Int[Tensor, " b"]) -> dict[str, Float[Tensor, " b"]]:
    """Per example: whether the class is the first guess and among five, loss in nats, and what calibration sums.

    Of each bin of confidence, `bin…` is hit minus confidence for the examples in it: the expected calibration error is
    the sum over bins of |Σ bin…| / examples.

    References:
        Guo, Pleiss, Sun, Weinberger: On Calibration of Modern Neural Networks. ICML 2017.
    """
    logits = logits.double()
    confidence, guess = logits.softmax(1).max(1)
    hit = (guess == labels).double()
    # Bins are open below: a confidence on an edge belongs to the bin that ends there.
    bins = F.one_hot((confidence * BINS).ceil().long().clamp(1, BINS) - 1, BINS) * (hit - confidence)[:, None]
    top = logits.topk(min(5, logits.shape[1])).indices
    return {
        "accuracy": hit,
        "top5_accuracy": (top == labels[:, None]).any(1).double(),
        "loss": F.cross_entropy(logits, labels, reduction="none"),
    } | {f"bin{number}": values for number, values in enumerate(bins.T)}


def _detail(classify: Classify, batch: Batch, normalization: Normalization, seed: int, plan: Plan) -> dict[str, Tensor]:
    """Everything that is measured on the subset, per example."""
    images, labels = batch.images, batch.labels
    assert batch.indices is not None
    indices = batch.indices.tolist()

    def generators(purpose: str) -> list[torch.Generator]:
        """One for each example and purpose, the same on whatever worker and in whatever order."""
        names = (f"{seed}/{purpose}/{index}" for index in indices)
        numbers = (int.from_bytes(sha256(name.encode()).digest()[:7], "big") for name in names)
        return [torch.Generator().manual_seed(number) for number in numbers]

    def hits(changed: Tensor) -> Tensor:
        with torch.no_grad():
            return classify(changed).argmax(1) == labels

    heatmaps = heatmap(classify, images, labels)
    values = similarity(heatmaps, images) | structure(heatmaps) | {"subset_accuracy": hits(images)}
    for number, attack in enumerate(plan.attacks):
        _, withstood = attack(classify, images, labels, generators(attack.key), normalization)
        values[f"accuracy_{attack.key}"] = withstood
        if number == 0:
            values["robust_accuracy"] = withstood
    if not plan.full:
        return values
    values |= insertion_deletion(classify, images, labels, heatmaps)
    values |= agreement(classify, images, labels, heatmaps, generators("smoothgrad"))
    pixels = normalization.to_pixels(images)
    for name, changed in noisy(pixels, generators):
        values[f"accuracy_noise_{name}"] = hits(normalization.from_pixels(changed))
    levels = (255 * pixels).round().to(torch.uint8).cpu()
    for name, corruption in CORRUPTIONS.items():
        for severity in SEVERITIES:
            corrupted = [corruption(*one) for one in zip(levels, repeat(severity), generators(name), strict=False)]
            changed = normalization.normalize(torch.stack(corrupted).to(images.device))
            values[f"accuracy_{name}_{severity}"] = hits(changed)
    return values


def _report(values: dict[str, float], plan: Plan) -> dict[str, float]:
    bins = [values.pop(f"bin{number}") for number in range(BINS)]
    values = {"calibration_error": math.fsum(map(abs, bins))} | values
    if plan.majority:
        sizes = [values.pop(name) for name in list(values) if name.startswith("class")]
        values["majority"] = max(sizes, default=0.0) / (values["examples"] or 1)
    if plan.full:
        for family, names in FAMILIES.items():
            every = [values[f"accuracy_{name}_{severity}"] for name in names for severity in SEVERITIES]
            values[f"accuracy_corrupted_{family}"] = math.fsum(every) / len(every)
        families = [values[f"accuracy_corrupted_{family}"] for family in FAMILIES]
        values["accuracy_corrupted"] = math.fsum(families) / len(families)
    return values


class Means:
    """Sums of each batch, added up exactly at the end: no order of batches and no number of workers shows."""

    def __init__(self) -> None:
        self.sums: dict[str, list[float]] = {}
        self.counts: dict[str, int] = {}

    def add(self, values: dict[str, Tensor]) -> None:
        """Take values `(b,)` of the examples of one batch, one transfer from the device for all of them."""
        table = torch.stack([value.double() for value in values.values()]).sum(1).tolist()
        for name, value, values_of in zip(values, table, values.values(), strict=True):
            self.sums.setdefault(name, []).append(value)
            self.counts[name] = self.counts.get(name, 0) + len(values_of)

    def count(self, name: str, number: float) -> None:
        """Take a number that is to be summed, not averaged."""
        self.sums.setdefault(name, []).append(number)

    def over_workers(self, device: torch.device) -> dict[str, float]:
        """Mean over all examples of all workers of what was added, sum of what was counted."""
        everywhere = gather_over_workers((self.sums, self.counts), device)
        names = dict.fromkeys(name for sums, _ in everywhere for name in sums)
        totals = {name: math.fsum(value for sums, _ in everywhere for value in sums.get(name, ())) for name in names}
        counts = {name: sum(counts.get(name, 0) for _, counts in everywhere) for name in names}
        return {name: total / (counts[name] or 1) for name, total in totals.items()}
