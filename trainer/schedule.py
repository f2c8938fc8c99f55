"""The learning rate of each step: constant, or the schedule the original trains ImageNet with."""

from trainer.config import Trial

# (epoch of 90, factor from there on); before the first the rate grows from 0 in proportion to the epoch.
MILESTONES = ((5, 1.0), (30, 0.1), (60, 0.01), (80, 0.001))
REFERENCE_BATCH = 256  # images that `learning_rate` is for


def learning_rate(trial: Trial, step: int, world_size: int) -> float:
    """Learning rate of a step, counted from 0.

    Under `imagenet` it is proportional to the batch over all workers, and the milestones move with `trial.epochs`.
    """
    if trial.schedule == "constant":
        return trial.learning_rate
    batch = trial.batch_size * world_size
    whole_rate, epoch = trial.learning_rate * batch / REFERENCE_BATCH, step * batch / trial.epoch_images
    return whole_rate * factor(epoch, float(trial.epochs))


def factor(epoch: float, epochs: float) -> float:
    """Factor on the learning rate; milestones are whole epochs, so a run of less than 18 epochs has no warm-up.

    Args:
        epoch: number of passes done, with fractions.
    """
    starts = [start * epochs // 90 for start, _ in MILESTONES]
    if epoch < starts[0]:
        return epoch / starts[0]
    return next(factor for start, (_, factor) in zip(starts[::-1], MILESTONES[::-1], strict=True) if epoch >= start)
