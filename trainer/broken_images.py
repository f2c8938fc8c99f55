"""How many images of a split may be undecodable, and the refusal of more."""

from trainer.config import UsageError
from trainer.shards import Shards

MAX_BROKEN = 0.001  # fraction of a split's images that may be undecodable
FEW_BROKEN = 32  # beyond so many, those that were read so far may not be broken for the most part
VERIFY = "`python -m trainer.shards --verify` lists them"


def too_many(broken: int, read: int, shards: Shards) -> str:
    """Why a reader is to give up, empty while it is not."""
    if broken > MAX_BROKEN * shards.total:
        return f"more than {MAX_BROKEN:.1%} of the {shards.total} {shards.split} images are broken"
    if broken > FEW_BROKEN and 2 * broken > read:  # a large split that is no good
        return f"{broken} of the first {read} {shards.split} images are broken"
    return ""


def refuse_broken(broken: float | int, asked: int, shards: Shards, passes: int = 1) -> None:
    """Refuse an evaluation or an epoch for images that could not be decoded, counted over all workers.

    Args:
        asked: number of examples that were to be evaluated or trained on, over all passes.
        passes: how often the same image may have been counted.

    Raises:
        UsageError: if they are more than 0.1 % of the split, or most of those asked for.
    """
    if broken > MAX_BROKEN * shards.total * passes or 2 * broken > asked:
        raise UsageError(
            f"{broken:.0f} of {asked} {shards.split} images cannot be decoded, and at most {MAX_BROKEN:.1%} of the "
            f"split may be broken; {VERIFY}"
        )
