"""timm's models: by name, with the tag of their weights, or from the Hugging Face Hub; and their published weights."""

import logging
from typing import Any

import torch
from torch import nn

from trainer.errors import FieldError, UsageError
from trainer.timm_names import HUB, PRETRAINED, TIMM, check_name, import_timm


def build_timm(name: str, classes: int | None, *, weights: bool = False) -> nn.Module:
    """A model of timm.

    Args:
        name: `timm:NAME`, `timm:NAME.TAG` or `timm:hf-hub:OWNER/NAME`, whose configuration is downloaded.
        classes: number of outputs; None is that of its published weights.

    Raises:
        UsageError: if timm is not installed, does not know the name, or cannot download what it needs.
    """
    timm = import_timm(name)
    if not name.startswith(HUB):
        check_name(timm, name)
    logging.getLogger("huggingface_hub").setLevel(
        logging.ERROR
    )  # it logs every attempt; the last one is reported below
    sizes = {} if classes is None else {"num_classes": classes}
    try:
        return timm.create_model(name.removeprefix(TIMM), pretrained=weights, **sizes)
    except Exception as error:  # of timm, of the Hub's client, of the network below it
        if not (weights or name.startswith(HUB)):
            raise
        raise _why_not(name, error, weights) from None


def published(name: str) -> dict[str, Any]:
    """The published weights of a timm model, as a file of weights would hold them.

    Raises:
        UsageError: if the model is not timm's, has none, or they cannot be downloaded.
    """
    if not name.startswith(TIMM):
        raise FieldError(
            "checkpoint", PRETRAINED, f"of model {name!r} no weights are known; give a file, or `model` timm:{name}"
        )
    return {"model": build_timm(name, None, weights=True).state_dict()}


def without_network(name: str) -> str:
    """The same model under a name that needs no download; a name of the Hub stays where timm has none for it.

    A model on the Hub may be built with arguments of its own, so what the two compute is compared.
    """
    if not name.startswith(HUB):
        return name
    timm = import_timm(name)
    theirs: Any = build_timm(name, None)
    config = theirs.pretrained_cfg
    known = f"{config.get('architecture')}.{config.get('tag')}"
    ours = f"{TIMM}{known if known in timm.list_pretrained() else config.get('architecture')}"
    try:
        twin = build_timm(ours, theirs.num_classes)
        twin.load_state_dict(theirs.state_dict())
    except (RuntimeError, UsageError):
        return name
    images = torch.randn(1, *config["input_size"], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return ours if torch.equal(theirs.eval()(images), twin.eval()(images)) else name


def _why_not(name: str, error: Exception, weights: bool) -> FieldError:
    reason = (str(error).strip().splitlines() or [""])[0][:160]
    if "No pretrained weights exist" in reason:
        return FieldError("checkpoint", PRETRAINED, f"timm knows no published weights of {name!r}; give a file")
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if kinds & {"RepositoryNotFoundError", "RevisionNotFoundError"}:
        reason = "the Hub has no such repository, or it is private"
    elif kinds & {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "TransportError", "ConnectionError", "URLError"}:
        reason = "the server does not answer, and no copy was kept here"
    elif "EntryNotFoundError" in kinds:
        reason = "the repository is not of a model of timm"
    else:
        reason = f"{type(error).__name__}: {reason}"
    remedy = f"cannot be downloaded: {reason}; check the name and the network, or give a file as `checkpoint`"
    if weights:
        return FieldError("checkpoint", PRETRAINED, f"the weights of {name!r} {remedy}")
    return FieldError("model", name, f"its configuration {remedy}")
