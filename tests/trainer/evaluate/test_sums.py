"""Sums that show neither the order of batches nor the number of workers."""

import torch

from trainer.evaluate.sums import Sums

CPU = torch.device("cpu")


def test_the_order_of_batches_changes_no_digit():
    values = [torch.rand(7, dtype=torch.float64) * 10.0**power for power in range(-8, 9)]
    results = []
    for order in (values, values[::-1], values[5:] + values[:5]):
        sums = Sums()
        for batch in order:
            sums.add({"x": batch}, batch[:, None])
        results.append((sums.over_workers(CPU).means(), sums.over_workers(CPU).calibration_means(7)))
    assert results[0] == results[1] == results[2]
