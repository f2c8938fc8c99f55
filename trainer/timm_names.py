"""timm as an optional library, and the names of its models."""

import difflib
from types import ModuleType

from trainer.errors import FieldError, UsageError

TIMM = "timm:"
PRETRAINED = "pretrained"  # in place of a file of weights: those that a model's authors publish
HUB = "timm:hf-hub:"  # after that, a repository of the Hugging Face Hub


def import_timm(name: str) -> ModuleType:
    """The library timm, which the model of this name needs.

    Raises:
        UsageError: if it is not installed, or cannot be imported.
    """
    try:
        import timm
    except ImportError:
        raise FieldError("model", name, "needs timm; install it with: pip install 'heatmap-sweeps[timm]'") from None
    except RuntimeError as error:  # a torchvision made for another torch
        reason = str(error).partition("\n")[0]
        raise FieldError(
            "model", name, f"timm cannot be imported ({reason}); install torch and torchvision from the same index"
        ) from None
    return timm


def is_timm(name: str) -> bool:
    """Whether an installed timm has a model of this name, given without `timm:`."""
    try:
        return import_timm(name).is_model(name.partition(".")[0])
    except UsageError:
        return False


def check_name(timm: ModuleType, name: str) -> None:
    """Refuse a name that timm does not know, with those that are near.

    Raises:
        UsageError: naming them.
    """
    asked = name.removeprefix(TIMM)
    architecture, _, tag = asked.partition(".")
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), 3)
        meant = f"; did you mean {', '.join(near)}?" if near else f"; {TIMM}hf-hub:OWNER/NAME takes one from the Hub"
        raise FieldError("model", name, f"timm {timm.__version__} has no {architecture!r}{meant}")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise FieldError(
            "model",
            name,
            f"timm {timm.__version__} has no weights {tag!r} of {architecture}; it has "
            f"{', '.join(difflib.get_close_matches(tag, tags, 5, 0) or ['none'])}",
        )
