"""Accuracy and calibration against an independent library."""

import pytest
import torch
from torch import nn

from trainer.evaluate.accuracy import accuracy, calibration_error, calibration_gaps
from trainer.evaluate.sums import Sums

CPU = torch.device("cpu")


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_accuracy_and_calibration_equal_torchmetrics(classes):
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

    generator = torch.Generator().manual_seed(classes)
    logits = 3 * torch.randn(500, classes, generator=generator)
    labels = torch.where(torch.rand(500, generator=generator) < 0.5, logits.argmax(1),
                         torch.randint(classes, (500,), generator=generator))  # fmt: skip
    sums = Sums()
    for part in torch.arange(500).split(64):
        sums.add(accuracy(logits[part], labels[part]), calibration_gaps(logits[part], labels[part]))
    sums = sums.over_workers(CPU)
    options = {"num_classes": classes, "average": "micro"}
    expected = {
        "accuracy": multiclass_accuracy(logits, labels, **options),
        "top5_accuracy": multiclass_accuracy(logits, labels, top_k=min(5, classes), **options),
        "loss": nn.functional.cross_entropy(logits.double(), labels),
    }
    assert sums.means() == {name: pytest.approx(float(value), abs=1e-7) for name, value in expected.items()}
    error = multiclass_calibration_error(logits.double(), labels, classes, n_bins=15)
    assert calibration_error(sums.calibration_means(500)) == pytest.approx(float(error), abs=1e-6)
