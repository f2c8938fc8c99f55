"""The command line of a sweep, and the sweep it asks for."""

import argparse
import dataclasses
import os
import time
from pathlib import Path
from typing import Any

from regularizers import REGULARIZERS
from sweeps.capacity import worker_defaults
from sweeps.presets import DIGITS, FINETUNING, ORIGINAL, ORIGINAL_BATCH, TRAINING
from sweeps.settings import ALLOCATIONS, OBJECTIVES, SCHEDULERS, Sweep, extended
from trainer.arguments import Parser
from trainer.cache import ShardCache
from trainer.config import BATCH_NORM_MODES, DOUBLE_BACKPROP, EVALUATIONS, PRECISIONS, Trial, UsageError
from trainer.locations import absolute, is_url
from trainer.model_input import parse_channels
from trainer.placement import RAY_TRAIN, Placement
from trainer.published import PRETRAINED
from trainer.shards import evaluation_splits, read_shards
from trainer.weights_file import checkpoint_in

PRESETS = ("original",)
# Of an earlier sweep that goes on, what may be changed.
HEEDED = {"resume": ("max_accuracy_drop",), "extend": ("seeds", "max_accuracy_drop", "max_concurrent")}


def original(workers: int, finetune: bool) -> dict[str, Any]:
    """What `--preset original` sets of a trial.

    Raises:
        UsageError: if its batch cannot be divided among the workers.
    """
    if ORIGINAL_BATCH % workers:
        raise UsageError(
            f"--preset original: {workers} workers cannot share a batch of {ORIGINAL_BATCH}; give --batch-size or "
            "another --workers-per-trial"
        )
    return ORIGINAL | (FINETUNING if finetune else TRAINING) | {"batch_size": ORIGINAL_BATCH // workers}


def parse(description: str) -> argparse.Namespace:
    """Read the command line; --help shows every default. Its `flags` are those that were given."""
    parser = Parser(
        description=description,
        usage="%(prog)s [options]",
        epilog="Without --data the embedded default runs: handwritten digits and a small network pretrained on them.",
    )
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        help="settings of the code the losses come from (docs/original.md); other flags override it",
    )
    what = parser.add_argument_group("what to train")
    what.add_argument("--data", metavar="WHERE", help="shards: folder or URL (http, s3, gs; braces expand)")
    what.add_argument("--model", help="such as resnet20, resnet50 or timm:NAME (default: resnet8, for the digits)")
    what.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="weights to finetune: a file of PyTorch or safetensors, or pretrained: those timm knows of, downloaded",
    )
    what.add_argument(
        "--new-head",
        action="store_true",
        help="a fresh last layer, where the weights are of other classes or have none",
    )
    what.add_argument(
        "--head-steps",
        type=int,
        metavar="N",
        help="batches to train that layer on, alone, before the sweep",
    )
    what.add_argument("--ema", action="store_true", help="take the moving average that a file has beside its weights")
    what.add_argument("--epochs", type=int, metavar="N", help="per trial (default 2)")
    what.add_argument(
        "--images-per-epoch", type=int, metavar="N", help="over all workers (default: the training split, once)"
    )
    what.add_argument("--batch-size", type=int, metavar="N", help="images per worker and step (default 64; digits 32)")
    what.add_argument("--learning-rate", type=float, metavar="X", help="of SGD (default 0.003)")
    what.add_argument(
        "--pgd-eps", type=float, metavar="X", help="attack radius in pixel values of 255 (default 2; digits 8)"
    )
    what.add_argument(
        "--image-size",
        type=int,
        metavar="N",
        help="side in pixels (default: the model's own, 224 for ours; CIFAR's ResNets: the images' own)",
    )
    what.add_argument("--mean", metavar="R,G,B", help="of the pixels, 0 to 1 (default: the model's own)")
    what.add_argument("--std", metavar="R,G,B", help="their deviation, 0 to 1 (default: the model's own)")
    what.add_argument("--no-augment", action="store_true", help="train on centre crops, unflipped (digits: always)")
    what.add_argument("--no-flip", action="store_true", help="crop at random but never mirror")
    how = parser.add_argument_group("how it is computed")
    how.add_argument(
        "--batch-norm",
        choices=BATCH_NORM_MODES,
        help="statistics: running (frozen, default), or the batch's, constant for the heatmap (stop) or not (flow)",
    )
    how.add_argument("--precision", choices=PRECISIONS, default="float32", help="of the model (default float32)")
    how.add_argument(
        "--double-backprop",
        choices=DOUBLE_BACKPROP,
        help="second derivatives: this project's where they hold (fast, default), or PyTorch's functions alone",
    )
    how.add_argument("--compile", action="store_true", help="translate the loss with torch.compile; minutes per trial")
    how.add_argument(
        "--evaluate",
        choices=EVALUATIONS,
        default="light",
        help="on the test split, at the end: accuracy, an attack and heatmap similarity (light, default) or everything",
    )
    how.add_argument("--robust-images", type=int, metavar="N", help="attacked and explained then (default 256)")
    search = parser.add_argument_group("what to compare")
    search.add_argument("--regularizers", metavar="A,B", help=f"of {', '.join(sorted(REGULARIZERS))} (default all)")
    search.add_argument("--trials-per-regularizer", type=int, metavar="N", help="weights tried for each (default 1)")
    search.add_argument(
        "--strengths", metavar="X,Y", help="the weights to try, in calibrated units, instead of a search (0.1 to 1000)"
    )
    search.add_argument("--weight", type=float, metavar="X", help="of every penalty, absolute, instead of a search")
    search.add_argument("--scheduler", choices=SCHEDULERS, help="asha (default) stops weak trials early, none does not")
    search.add_argument(
        "--allocation",
        choices=ALLOCATIONS,
        default="equal",
        help="of trials: as many for each regularizer (default), or Optuna chooses once each had one; as many in all",
    )
    search.add_argument(
        "--objectives", choices=OBJECTIVES, default="robust", help="of the search: robust accuracy (default) or both"
    )
    search.add_argument(
        "--seeds",
        type=int,
        metavar="N",
        help="train the best weight of each regularizer again with N new seeds and give means with 95 %% intervals; "
        "N trials more for each (default 0)",
    )
    search.add_argument(
        "--max-accuracy-drop",
        type=float,
        metavar="POINTS",
        help="how much less accurate than the baseline the pick may be (default 2); with --resume, picks anew",
    )
    search.add_argument(
        "--seed", type=int, metavar="N", default=0, help="of search, data order and attacks (default 0)"
    )
    where = parser.add_argument_group("where it runs")
    where.add_argument(
        "--workers-per-trial", type=int, metavar="N", default=1, help="DDP processes of each trial (default 1)"
    )
    where.add_argument(
        "--gpus-per-worker", type=float, metavar="X", help="default 1 where the cluster has GPUs, else 0 (gloo on CPU)"
    )
    where.add_argument(
        "--loader-workers",
        type=int,
        metavar="N",
        help="processes that decode, per worker (default 0; with GPUs up to 6)",
    )
    where.add_argument(
        "--cache-dir",
        metavar="FOLDER",
        default=ShardCache.folder,
        help=f"of remote shards (default {ShardCache.folder})",
    )
    where.add_argument(
        "--cache-size", type=float, metavar="GB", default=ShardCache.size / 1e9, help="of that folder (default 50)"
    )
    where.add_argument(
        "--ray-train",
        choices=RAY_TRAIN,
        default=Placement.ray_train,
        help="with few processes for each trial (lean, default), or as Ray has it (stock; so it always is with another "
        "Ray than the tested one)",
    )
    where.add_argument("--max-concurrent", type=int, metavar="N", help="trials at once (default: as many as fit)")
    kept = parser.add_argument_group("where it is kept")
    kept.add_argument(
        "--storage",
        metavar="WHERE",
        default=os.environ.get("SWEEPS_STORAGE", "runs"),
        help="folder, s3:// or gs:// URL for all that is written (default: that of SWEEPS_STORAGE, else ./runs)",
    )
    kept.add_argument(
        "--local-dir",
        metavar="FOLDER",
        help="of this machine, where --storage is a URL: the search's journal, points on their way to MLflow "
        "(default ./runs)",
    )
    kept.add_argument(
        "--keep",
        metavar="WHAT",
        default="best",
        help="checkpoints that stay whole once the sweep is over: all, those of "
        "the pick (best, default) or of the top-K trials; of others only the weights stay",
    )
    kept.add_argument(
        "--tracking-uri",
        metavar="URI",
        default=os.environ.get("MLFLOW_TRACKING_URI"),
        help="of MLflow (default: MLFLOW_TRACKING_URI, else an SQLite file in the storage folder)",
    )
    kept.add_argument("--name", help="of the sweep (default: the date and time)")
    kept.add_argument("-v", "--verbose", action="store_true", help="print what Ray and the workers say, too")
    kept.add_argument("--resume", action="store_true", help="continue the sweep --name with its own settings")
    kept.add_argument(
        "--extend", type=int, metavar="N", help="run N trials more per regularizer of the sweep --name, which has ended"
    )
    given, unset = parser.parse_args(), object()
    again = parser.parse_args(namespace=argparse.Namespace(**dict.fromkeys(vars(given), unset)))
    given.flags = [name for name, value in vars(again).items() if value is not unset]
    return given


def check_flags(given: argparse.Namespace) -> None:
    """Refuse flags that a sweep that goes on would not heed: it has its own settings.

    Raises:
        UsageError: naming them, and those it heeds.
    """
    goes_on = "resume" if given.resume else "extend"
    heeded = [goes_on, "name", "storage", "verbose", *HEEDED[goes_on]]
    ignored = [f"--{name.replace('_', '-')}" for name in given.flags if name not in heeded]
    if ignored:
        takes = ", ".join(f"--{name.replace('_', '-')}" for name in heeded[1:])
        raise UsageError(
            f"{', '.join(ignored)}: with --{goes_on} a sweep keeps the settings it began with; beside it only {takes} "
            "are heeded; leave out the others, or begin another sweep"
        )


def sweep_of(given: argparse.Namespace) -> Sweep:
    """The sweep the command line asks for: an earlier one (--resume, --extend), of own data, or of the embedded digits.

    Raises:
        UsageError: if flags contradict each other or the data cannot be found.
    """
    storage = absolute(given.storage).rstrip("/")
    if given.resume or given.extend is not None:
        if not given.name:
            flag = "--resume" if given.resume else "--extend"
            raise UsageError(f"{flag} needs --name: which sweep shall go on?")
        if given.resume and given.extend is not None:
            raise UsageError("--resume ends what was begun, --extend begins more: give one of them")
        check_flags(given)
        sweep = Sweep.load(storage, given.name)
        if given.max_accuracy_drop is not None:
            sweep = dataclasses.replace(sweep, max_accuracy_drop=given.max_accuracy_drop / 100)
        if given.max_concurrent is not None:
            sweep = dataclasses.replace(sweep, max_concurrent=given.max_concurrent)
        return sweep if given.resume else extended(sweep, given.extend, given.seeds)
    name = given.name or time.strftime("sweep-%Y%m%d-%H%M%S")
    fields = {field.name for field in dataclasses.fields(Trial)} - {"data", "checkpoint", "pgd_eps", "seed", "weight"}
    asked = {key: value for key, value in vars(given).items() if key in fields and value is not None}
    asked |= {name: parse_channels(f"--{name}", asked[name]) for name in ("mean", "std") if name in asked}
    asked |= {"augment": False} if given.no_augment else {}
    asked |= {"flip": False} if given.no_flip else {}
    if given.pgd_eps is not None:
        asked["pgd_eps"] = given.pgd_eps / 255
    preset: dict[str, Any] = {}
    if given.preset:
        preset = original(1 if given.batch_size else given.workers_per_trial, bool(given.checkpoint or not given.data))
    if given.data is None:
        if given.checkpoint:
            raise UsageError("--checkpoint needs --data: the embedded digits pretrain a checkpoint of their own")
        settings = DIGITS | preset | asked | {"data": f"{storage}/{name}/digits"}
    else:
        if given.model is None:
            raise UsageError("--data needs --model: which architecture is to be finetuned?")
        data = absolute(given.data)
        images = read_shards(data, "train").total
        defaults: dict[str, Any] = {"epochs": 2, "batch_size": 64, "images_per_epoch": images}
        evaluation_splits(data)
        file = given.checkpoint not in (None, PRETRAINED)
        checkpoint = absolute(given.checkpoint) if file else given.checkpoint
        if file and (inside := checkpoint_in(checkpoint)) != checkpoint:
            raise UsageError(
                f"--checkpoint {checkpoint}: is the folder of a trial; its last epoch is {inside}, give that"
            )
        settings = defaults | preset | asked | {"data": data, "checkpoint": checkpoint}
        batch = settings["batch_size"] * given.workers_per_trial
        if given.images_per_epoch is None and images < batch:
            workers = "" if given.workers_per_trial == 1 else f" over {given.workers_per_trial} workers"
            raise UsageError(
                f"--data {data}: the train split has only {images} images, fewer than one batch of {batch}{workers}; "
                "lower --batch-size or put more images into it"
            )
    try:
        strengths = tuple(map(float, given.strengths.split(","))) if given.strengths else None
    except ValueError:
        raise UsageError(f"--strengths {given.strengths}: give numbers with commas between, such as 10,100") from None
    weight = settings.pop("weight", 0.0)
    if given.weight is not None or strengths is not None:
        weight = given.weight or 0.0
    trials = given.trials_per_regularizer
    if trials is None:
        trials = len(strengths) if strengths else 1
    if given.head_steps is not None and not given.new_head:
        raise UsageError("--head-steps is for --new-head; add that or leave it out")
    if given.local_dir and not is_url(storage):
        raise UsageError(f"--local-dir is for a --storage that is a URL; all is kept in {storage}")
    local_dir = absolute(given.local_dir or "runs") if is_url(storage) else None
    sweep = Sweep(
        name=name,
        storage=storage,
        local_dir=local_dir,
        tracking_uri=given.tracking_uri or f"sqlite:///{local_dir or storage}/mlflow.db",
        trial=Trial(seed=given.seed, weight=weight, **settings),
        regularizers=tuple(given.regularizers.split(",")) if given.regularizers else tuple(sorted(REGULARIZERS)),
        trials_per_regularizer=trials,
        strengths=strengths,
        scheduler=given.scheduler or ("none" if preset else "asha"),
        allocation=given.allocation,
        objectives=given.objectives,
        seeds=given.seeds or 0,
        new_head=given.new_head,
        head_steps=Sweep.head_steps if given.head_steps is None else given.head_steps,
        ema=given.ema,
        keep=given.keep,
        placement=Placement(
            workers=given.workers_per_trial,
            cache=ShardCache(str(Path(given.cache_dir).expanduser().resolve()), int(given.cache_size * 1e9)),
            ray_train=given.ray_train,
        ),
        max_concurrent=given.max_concurrent,
        max_accuracy_drop=Sweep.max_accuracy_drop if given.max_accuracy_drop is None else given.max_accuracy_drop / 100,
    )
    return with_defaults(sweep, given)


def with_defaults(sweep: Sweep, given: argparse.Namespace) -> Sweep:
    """The sweep with what each worker takes: as given, else for the machines there are.

    Args:
        sweep: that is asked for; until a cluster is joined, this machine serves.
        given: the command line.
    """
    gpus, loaders = worker_defaults()
    if given.gpus_per_worker is not None:
        gpus, loaders = given.gpus_per_worker, loaders if given.gpus_per_worker else 0
    if given.loader_workers is not None:
        loaders = given.loader_workers
    placement = dataclasses.replace(sweep.placement, gpus_per_worker=gpus, cpus_per_worker=1.0 + loaders)
    trial = dataclasses.replace(sweep.trial, loader_workers=loaders)
    return dataclasses.replace(sweep, trial=trial, placement=placement)
