"""Names of metrics, `split/name`, defined once; docs/metrics.md says what they mean. Imports nothing."""

Metrics = dict[str, float]


def metric(split: str, name: str) -> str:
    """Full name of a metric.

    Args:
        split: train, val or test; `step` for the losses of single steps, `system` for the load of the machine.
    """
    return f"{split}/{name}"


def of_split(metrics: Metrics, split: str) -> Metrics:
    """The metrics of one split under their names within it."""
    prefix = metric(split, "")
    return {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}


TRAIN, VAL, TEST = "train", "val", "test"  # splits

# Of single steps and, as means, of training epochs.
LOSSES = ("loss", "penalty", "cross_entropy")
STEP_LOSSES = tuple(metric("step", name) for name in LOSSES)
TRAIN_LOSSES = tuple(metric(TRAIN, name) for name in LOSSES)
STEP_LOSS, TRAIN_LOSS = STEP_LOSSES[0], TRAIN_LOSSES[0]
TRAIN_NONFINITE_EXAMPLES = metric(TRAIN, "nonfinite_examples")
TRAIN_IMAGES_PER_SECOND = metric(TRAIN, "images_per_second")
TRAIN_SHARE_WAITING_FOR_DATA = metric(TRAIN, "share_waiting_for_data")

# Names within the split that is evaluated.
ACCURACY, TOP5_ACCURACY, LOSS = "accuracy", "top5_accuracy", "loss"
CALIBRATION_ERROR, MAJORITY = "calibration_error", "majority"
ROBUST_ACCURACY, SUBSET_ACCURACY = "robust_accuracy", "subset_accuracy"
HEATMAP_SSIM, HEATMAP_CORRELATION = "heatmap_ssim", "heatmap_correlation"
EXAMPLES, ATTACKED_EXAMPLES, BROKEN_EXAMPLES = "examples", "attacked_examples", "broken_examples"
CORRUPTED_ACCURACY = "accuracy_corrupted"

VAL_ACCURACY, TEST_ACCURACY = metric(VAL, ACCURACY), metric(TEST, ACCURACY)
VAL_ROBUST_ACCURACY, TEST_ROBUST_ACCURACY = metric(VAL, ROBUST_ACCURACY), metric(TEST, ROBUST_ACCURACY)
VAL_HEATMAP_SSIM, VAL_HEATMAP_CORRELATION = metric(VAL, HEATMAP_SSIM), metric(VAL, HEATMAP_CORRELATION)
VAL_EXAMPLES, VAL_ATTACKED_EXAMPLES = metric(VAL, EXAMPLES), metric(VAL, ATTACKED_EXAMPLES)
VAL_MAJORITY = metric(VAL, MAJORITY)

# Reported for trials without results: those that diverged or failed.
WORST: Metrics = {VAL_ACCURACY: 0.0, VAL_ROBUST_ACCURACY: 0.0, VAL_HEATMAP_SSIM: -1.0}


def attacked_accuracy(attack: str) -> str:
    """Accuracy under an attack, named by its key."""
    return f"accuracy_{attack}"


def noise_accuracy(noise: str) -> str:
    """Accuracy under one kind and level of noise."""
    return f"accuracy_noise_{noise}"


def corruption_accuracy(corruption: str, severity: int) -> str:
    """Accuracy under a corruption of one severity."""
    return f"accuracy_{corruption}_{severity}"


def family_accuracy(family: str) -> str:
    """Mean accuracy over the corruptions of a family."""
    return f"{CORRUPTED_ACCURACY}_{family}"
