"""Names of metrics."""

import re
from pathlib import Path

from trainer import metrics
from trainer.metrics import WORST, metric, of_split

ROOT = Path(__file__).parents[2]


def test_the_metrics_of_a_split_have_the_names_they_were_given():
    values = {metric("val", "accuracy"): 0.5, metric("test", "accuracy"): 0.25, metric("val", "a/b"): 1.0}
    assert of_split(values, "val") == {"accuracy": 0.5, "a/b": 1.0}


def test_names_are_written_once():
    """In the trainer, a metric's full name stands in no other file as a literal."""
    names = {
        value for name, value in vars(metrics).items() if name.isupper() and isinstance(value, str) and "/" in value
    }
    assert names > set(WORST)
    for path in (ROOT / "trainer").rglob("*.py"):
        if path.name != "metrics.py":
            literals = set(re.findall(r'"((?:train|val|test|step)/\w+)"', path.read_text()))
            assert not literals & names, path


def test_docs_define_every_metric_of_an_evaluation():
    text = (ROOT / "docs/metrics.md").read_text()
    for name in (metrics.ACCURACY, metrics.ROBUST_ACCURACY, metrics.CALIBRATION_ERROR, metrics.HEATMAP_SSIM,
                 metrics.SUBSET_ACCURACY, metrics.BROKEN_EXAMPLES, metrics.ATTACKED_EXAMPLES):  # fmt: skip
        assert f"`{name}`" in text or name in text, name
