"""The checkpoints of a sweep: whether they will fit, and what of them is kept once it is over."""

import logging
import os
import shutil

from sweeps.ranking import Row, rank
from sweeps.settings import Sweep
from trainer.checkpoint_io import EPOCH, load_state, save_state
from trainer.config import Trial
from trainer.errors import FieldError, UsageError
from trainer.fit import count_classes
from trainer.locations import file_size, folders_in, is_url, read_json, write_json
from trainer.models import build_model

log = logging.getLogger(__name__)

EACH = 2  # per trial: the best and the last
RESERVE = 1.05  # what else a sweep writes
WEIGHTS_ONLY = "weights_only.json"


def state_size(trial: Trial) -> int:
    """Bytes of a checkpoint: the weights, and as much again for the optimizer's momentum."""
    model = build_model(trial.model, count_classes(trial.data), trial.activation)
    momentum = sum(p.numel() * p.element_size() for p in model.parameters()) if trial.momentum else 0
    return momentum + sum(t.numel() * t.element_size() for t in model.state_dict().values())


def space_needed(sweep: Sweep) -> int:
    """Bytes that the trials of the sweep's last part, and their repetitions, will take at most."""
    trials = len(sweep.names) * sweep.parts[-1] + sweep.most_repetitions
    written_at_once = min(sweep.max_concurrent or os.cpu_count() or 1, trials)
    return int((trials * EACH + written_at_once) * state_size(sweep.trial) * RESERVE)


def check_space(sweep: Sweep) -> str:
    """Say how much disk the checkpoints will take.

    Raises:
        UsageError: if there is less; an object store is taken to have enough.
    """
    needed = space_needed(sweep)
    if is_url(sweep.storage):
        return f"checkpoints: up to {size_in_words(needed)} in {sweep.storage}"
    free = shutil.disk_usage(sweep.folder).free
    if needed > free:
        raise FieldError(
            "storage",
            sweep.storage,
            f"checkpoints will take up to {size_in_words(needed)}, "
            f"{size_in_words(free)} are free; lower `trials_per_regularizer` or `seeds`, or give another "
            "folder or an s3:// URL",
        )
    return f"checkpoints: up to {size_in_words(needed)}, {size_in_words(free)} are free"


def keep_only(sweep: Sweep, rows: list[Row], repeated: list[str], picked: Row | None) -> int:
    """Reduce the checkpoints of trials that are over and did not win to their weights, as `sweep.keep` says.

    Args:
        sweep: sweep that has ended.
        rows: all its trials; those that failed stay as they are, for they may be tried again.
        repeated: ids of finished repetitions of the best weights.
        picked: always kept whole.

    Returns:
        Number of trials reduced now.
    """
    if sweep.keep == "all":
        return 0
    best = [row.trial_id for row in rank(rows) if row.status == "finished"]
    whole = set(best[: int(sweep.keep.removeprefix("top-"))] if sweep.keep != "best" else [])
    whole |= {picked.trial_id} if picked else set()
    over = [row.trial_id for row in rows if row.status != "failed"] + repeated
    return sum(_reduce(f"{sweep.trials_folder}/{trial}") for trial in over if trial not in whole)


def only_weights(sweep: Sweep, trial_id: str) -> bool:
    """Whether no more than the weights are left of a trial."""
    return file_size(f"{sweep.trials_folder}/{trial_id}/{WEIGHTS_ONLY}") is not None


def _reduce(folder: str) -> bool:
    """Reduce every checkpoint in the folder of a trial; each is whole before, after and between."""
    marker = f"{folder}/{WEIGHTS_ONLY}"
    if (read_json(marker) or {}).get("done"):
        return False
    write_json(marker, {"done": False})  # first: with some of them reduced, none should be trained on
    for name in sorted(name for name in folders_in(folder) if name.startswith(EPOCH)):
        try:
            state = load_state(f"{folder}/{name}")
        except UsageError as error:
            log.warning("%s; left as it is", error)
            continue
        save_state(
            {key: value for key, value in state.items() if key not in ("optimizer", "points")}, f"{folder}/{name}"
        )
    write_json(marker, {"done": True})
    return True


def size_in_words(count: float) -> str:
    """Such as 1.23 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
