"""What a light evaluation costs beside the training epoch it follows; both in one run, as a ratio.

python tests/benchmarks/evaluation.py                                   # handwritten digits
python tests/benchmarks/evaluation.py --data SHARDS --model resnet20 --images-per-epoch 12800
"""

import argparse
import statistics
import tempfile
import time

import torch

from trainer import fit as fit_module
from trainer.config import Trial
from trainer.digits import write_digits
from trainer.metrics import TRAIN_IMAGES_PER_SECOND, VAL_ATTACKED_EXAMPLES, VAL_EXAMPLES


def measure(trial: Trial) -> tuple[list[float], dict[str, float]]:
    """Ratio of evaluation to training of every epoch but the last, which ends with a closing evaluation."""
    seconds, ratios, metrics = [], [], {}
    original = fit_module.evaluate

    def timed(*arguments):
        started = time.perf_counter()
        measured = original(*arguments)
        seconds.append(time.perf_counter() - started)
        return measured

    def report(reported, state):
        training = trial.images_per_epoch / reported.metrics[TRAIN_IMAGES_PER_SECOND]
        if reported.epoch < trial.epochs:
            ratios.append(seconds[-1] / training)
            metrics.update(reported.metrics)

    fit_module.evaluate = timed
    try:
        fit_module.fit(trial, report, device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    finally:
        fit_module.evaluate = original
    return ratios, metrics


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--data")
    parser.add_argument("--model", default="resnet8")
    parser.add_argument("--images-per-epoch", type=int, default=6400)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if given.data is None:
            write_digits(str(folder))
        for regularizer, weight in (("none", 0.0), ("l2", 1.0)):
            trial = Trial(
                data=given.data or folder, model=given.model, regularizer=regularizer, weight=weight,
                epochs=given.epochs + 1, images_per_epoch=given.images_per_epoch, batch_size=given.batch_size,
            )  # fmt: skip
            ratios, metrics = measure(trial)
            print(
                f"{regularizer}: light evaluation / epoch of {given.images_per_epoch} images = "
                f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}); "
                f"{metrics[VAL_EXAMPLES]:.0f} examples, {metrics[VAL_ATTACKED_EXAMPLES]:.0f} of them attacked"
            )


if __name__ == "__main__":
    main()
