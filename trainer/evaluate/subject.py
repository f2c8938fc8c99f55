"""Models to evaluate: a trial's checkpoint, a state dict of published weights, or a model registered in MLflow."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer.config import Trial
from trainer.errors import FieldError
from trainer.last_layer import match_classes, taken, trial_settings
from trainer.models import build_model
from trainer.published import published
from trainer.shards import named_classes, read_shards
from trainer.timm_names import PRETRAINED
from trainer.weights import fit_weights
from trainer.weights_file import checkpoint_in, read_content, weights_file


@dataclass(frozen=True)
class Subject:
    """A model to evaluate.

    Args:
        label: short, for tables and file names.
        model: model, on the CPU.
        trial: settings of its evaluation; for a checkpoint of a trial, that trial's own.
    """

    label: str
    model: nn.Module
    trial: Trial


def load_subject(
    checkpoint: str, data: str | None, changes: dict[str, Any], ema: bool = False, say: Callable[[str], None] = print
) -> Subject:
    """Load a model.

    Args:
        checkpoint: folder of a trial, or of one of its checkpoints, or its state.pt; a file of published weights, or
            `pretrained`; `models:/NAME/VERSION`.
        data: shards to evaluate on. Where a model names its classes, the data's must be among them, in any
            order; weights that say none must have as many classes, or ImageNet's 1,000 where those of the data are
            WordNet ids.
        changes: settings of `Trial` given by the user; published weights need `model`, their architecture.
        ema: whether to take the moving average that a file has beside its weights.
        say: callback for a line to the user, on what was chosen in a file or left out.

    Raises:
        UsageError: if it cannot be loaded, or is not said to be what it needs to be said to be.
    """
    if checkpoint.startswith(("models:/", "runs:/")):
        model, known = registered_model(checkpoint)
        names, classes = known.pop("classes", None), read_shards(data, "val").classes
        if names and classes:
            rows = match_classes(names, classes, checkpoint)
            if rows != list(range(len(names))):
                say(taken(checkpoint, len(names), rows))
                model = _Chosen(model, rows)
        return Subject(checkpoint, model, Trial(**{"model": checkpoint} | known | changes, data=data))
    if checkpoint == PRETRAINED:
        file, content = PRETRAINED, published(changes["model"]) if "model" in changes else {}
    else:
        found = checkpoint_in(checkpoint)
        if found != checkpoint:
            say(f"{checkpoint} is the folder of a trial; its last epoch is taken, {found.rpartition('/')[2]}")
        file = weights_file(found)
        content = read_content(file)
    trained = trial_settings(content)
    if isinstance(trained.get("model"), str):
        try:
            trial = Trial.from_dict({**trained, "checkpoint": file, **changes, "data": data})
        except TypeError as error:
            raise FieldError("checkpoint", checkpoint, f"its trial is not one of this project ({error})") from None
        label = trial.label
    elif "model" in changes:
        trial = Trial(**changes, data=data, checkpoint=file)
        label = trial.model if file == PRETRAINED else Path(file).stem
    else:
        raise FieldError("checkpoint", checkpoint, "a state dict needs `model`: which architecture is it of?")
    classes = named_classes(data, "val")
    model = build_model(trial.model, len(classes), trial.activation)
    for note in fit_weights(model, content, file, classes=classes, head="rows", ema=ema).notes:
        say(note)
    return Subject(label, model, trial)


class _Chosen(nn.Module):
    """A model of which some outputs are taken, in an order of their own."""

    rows: Tensor

    def __init__(self, model: nn.Module, rows: list[int]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("rows", torch.tensor(rows))

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)[:, self.rows]


def registered_model(uri: str) -> tuple[nn.Module, dict[str, Any]]:
    """A PyTorch model from MLflow's registry, on the CPU, and what it records about its images.

    That is mean and deviation, where its metadata have them, and the image size, where its signature has one; and the
    names of its classes, in the order of its outputs, where the metadata have those.

    One that was saved as a pickle is run: the registry must be trusted.

    Raises:
        UsageError: if MLflow is not installed, or has no such model, or it is of another kind.
    """
    try:
        import mlflow.pytorch
    except ImportError:
        raise FieldError("checkpoint", uri, "MLflow is not installed") from None
    for name in ("alembic", "mlflow"):  # they log the creation of a database
        logging.getLogger(name).setLevel(logging.WARNING)
    usual = Path("runs/mlflow.db")  # of sweeps
    if not mlflow.is_tracking_uri_set() and usual.exists():
        mlflow.set_tracking_uri(f"sqlite:///{usual.resolve()}")
    where = mlflow.get_tracking_uri()
    try:
        if where.startswith("sqlite:///") and not Path(where.removeprefix("sqlite:///")).exists():
            raise FileNotFoundError("no database is there")  # MLflow would make one
        info = mlflow.models.get_model_info(uri)
        model = mlflow.pytorch.load_model(uri, map_location="cpu")
    except Exception as error:
        reason = str(error).partition("\n")[0][:200]
        raise FieldError(
            "checkpoint",
            uri,
            f"MLflow at {where} has no such PyTorch model ({reason}); to look elsewhere set "
            "MLFLOW_TRACKING_URI, such as to sqlite:///runs/mlflow.db",
        ) from None
    signature, metadata = info.signature, info.metadata or {}
    known = {name: metadata[name] for name in ("mean", "std", "classes") if name in metadata}
    inputs = signature.inputs.inputs if signature is not None and signature.inputs else [None]
    shape = tuple(getattr(inputs[0], "shape", ()))  # tables of columns have none
    square = len(shape) == 4 and shape[1] == 3 and shape[2] == shape[3] > 0
    return model, known | ({"image_size": shape[3]} if square else {})
