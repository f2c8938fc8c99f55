"""Before a sweep begins: what its settings leave open is filled in, and what cannot work is refused."""

import dataclasses
from pathlib import Path

from sweeps.capacity import in_words, nodes, per_trial, slots, wait_for_room, worker_defaults
from sweeps.checks import check_ranges
from sweeps.messages import note, stage
from sweeps.preflight import check_shared
from sweeps.settings import Sweep
from sweeps.start_weights import is_made, load_start
from sweeps.tracking.server import check_tracking
from trainer.config import Trial
from trainer.data import LoaderOptions, train_loader
from trainer.errors import FieldError
from trainer.locations import absolute
from trainer.models import build_model
from trainer.placement import TESTED_RAY
from trainer.preprocess import Transform
from trainer.published import PRETRAINED
from trainer.shards import evaluation_splits, read_shards, skipped_samples
from trainer.weights_file import checkpoint_in


def filled_in(sweep: Sweep) -> Sweep:
    """The sweep with absolute paths, MLflow's address and the number of images of an epoch.

    Raises:
        UsageError: if the data cannot be read, or are too few for a batch.
    """
    trial, cache = sweep.trial, sweep.placement.cache
    if trial.data is None:
        if trial.checkpoint is not None:
            raise FieldError(
                "checkpoint",
                trial.checkpoint,
                "needs `data`: the embedded digits pretrain a checkpoint of their own",
            )
    else:
        trial = _with_data(trial, sweep.placement.workers)
    cache = dataclasses.replace(cache, folder=str(Path(cache.folder).expanduser().resolve()))
    return dataclasses.replace(
        sweep, trial=trial, tracking_uri=sweep.mlflow, placement=dataclasses.replace(sweep.placement, cache=cache)
    )


def _with_data(trial: Trial, workers: int) -> Trial:
    data, checkpoint = absolute(str(trial.data)), trial.checkpoint
    images = read_shards(data, "train").total
    evaluation_splits(data)
    if checkpoint is not None and checkpoint != PRETRAINED:
        checkpoint = absolute(checkpoint)
        if (inside := checkpoint_in(checkpoint)) != checkpoint:
            raise FieldError(
                "checkpoint", checkpoint, f"is the folder of a trial; its last epoch is {inside}, give that"
            )
    batch = trial.batch_size * workers
    if trial.images_per_epoch is None and images < batch:
        over = "" if workers == 1 else f" over {workers} workers"
        raise FieldError(
            "data",
            data,
            f"the train split has only {images} images, fewer than one batch of {batch}{over}; lower `batch_size` or "
            "put more images into it",
        )
    return dataclasses.replace(
        trial, data=data, checkpoint=checkpoint, images_per_epoch=trial.images_per_epoch or images
    )


def check(sweep: Sweep) -> None:
    """Refuse a model, data, a checkpoint or an MLflow that do not fit, before anything is written."""
    trial = sweep.trial
    check_ranges(sweep)
    build_model(trial.model, classes=2)  # refuses an unknown name
    if trial.data is not None:
        train = read_shards(trial.data, "train")
        if skipped := skipped_samples(trial.data, train, *evaluation_splits(trial.data)):
            note(skipped)
        options = LoaderOptions(
            normalization=trial.normalization, batch_size=trial.batch_size, world_size=sweep.placement.workers
        )
        train_loader(train, Transform(trial.image_size, train=False), options, seed=0, steps=1)  # refuses too few
        load_start(sweep, stage)
    reach_tracking(sweep)


def reach_tracking(sweep: Sweep) -> None:
    """Refuse a server that is away, or a database that cannot be opened, before anything is started."""
    if not sweep.mlflow.startswith(f"sqlite:///{sweep.local_storage}"):
        check_tracking(sweep.mlflow)


def on_cluster(sweep: Sweep) -> Sweep:
    """The sweep with what each worker takes: as asked for, else what the machines of the cluster have."""
    gpus, loaders = worker_defaults()
    placement, trial = sweep.placement, sweep.trial
    if placement.gpus_per_worker is not None:
        gpus, loaders = placement.gpus_per_worker, loaders if placement.gpus_per_worker else 0
    if trial.loader_workers is not None:
        loaders = trial.loader_workers
    cpus = 1.0 + loaders if placement.cpus_per_worker is None else placement.cpus_per_worker
    placement = dataclasses.replace(placement, gpus_per_worker=gpus, cpus_per_worker=cpus)
    return dataclasses.replace(sweep, trial=dataclasses.replace(trial, loader_workers=loaders), placement=placement)


def wait_for_cluster(sweep: Sweep, new: bool) -> None:
    """See that the cluster has room for a trial, or will have, and that its nodes see what a trial needs.

    Args:
        new: whether it has no data and no checkpoint yet where it makes them itself.
    """
    if sweep.placement.ray_train == "lean" and not sweep.placement.lean:
        stage(f"this is not Ray {TESTED_RAY}, so stock Ray Train runs, with more processes per trial")
    at_once = slots(sweep)
    stage(f"{in_words(nodes())}: {at_once} trial{'s' if at_once > 1 else ''} of {per_trial(sweep.placement)} at a time")
    wait_for_room(sweep.placement, stage)
    trial: Trial | None = sweep.trial
    if new and sweep.trial.data is None:
        trial = None
    elif new and is_made(sweep):
        trial = dataclasses.replace(sweep.trial, checkpoint=None)
    check_shared(sweep.storage, trial)
