"""The winner as a model of MLflow: an exported graph, so that whoever loads it runs no pickle and no code of ours.

mlflow models serve --env-manager local -m models:/SWEEP@pick
"""

import contextlib
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlflow.pytorch
import numpy as np
import torch
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput, LoggedModelStatus, RunInfo
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

from trainer.cache import ShardCache
from trainer.config import Trial
from trainer.evaluate.gallery import examples
from trainer.evaluate.subject import load_subject
from trainer.shards import evaluation_splits

ALIAS = "pick"


def save_model(checkpoint: str, data: str | None, folder: Path, cache: ShardCache | None = None) -> Path:
    """Save a trial's network in MLflow's format: normalized images (b, 3, h, w) in, logits (b, k) out.

    The input example is two test images of the data. The metadata say how images become its input: `mean`, `std`,
    `image_size`, and what its outputs stand for: `classes` (docs/mlflow.md).

    Args:
        data: shards it was trained on.
        folder: folder of the model, there only when it is whole; one that is there already stays.

    Returns:
        The folder.

    Raises:
        Exception: if the architecture cannot be exported.
    """
    if folder.exists():
        return folder
    logging.getLogger("mlflow").setLevel(logging.ERROR)  # it advises on what is settled here
    subject = load_subject(checkpoint, data, {})
    _, test = evaluation_splits(data)
    batch = examples(test, subject.trial, 2, torch.device("cpu"), cache)
    images = batch.images[[0, -1]].numpy()  # always two: the graph of one would take no more
    classes = len(test.classes)
    signature = ModelSignature(
        Schema([TensorSpec(np.dtype("float32"), (-1, *images.shape[1:]))]),
        Schema([TensorSpec(np.dtype("float32"), (-1, classes))]),
    )
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    mlflow.pytorch.save_model(
        subject.model.eval(),
        str(partial),
        signature=signature,
        input_example=images,
        serialization_format="pt2",
        pip_requirements=[f"mlflow=={mlflow.__version__}", f"torch=={torch.__version__.partition('+')[0]}"],
        metadata=_metadata(subject.trial, images.shape, test.classes),
    )
    loaded = mlflow.pytorch.load_model(str(partial))
    for count in (1, 3):  # the signature promises any number
        loaded(torch.zeros(count, *images.shape[1:]))
    partial.rename(folder)
    return folder


def _metadata(trial: Trial, shape: tuple[int, ...], classes: Sequence[str]) -> dict[str, Any]:
    """What whoever feeds the model must know, in plain types.

    Args:
        shape: shape of its input, (b, 3, h, w).
        classes: names, by index of the output.
    """
    height, width = shape[2:]
    return {
        "mean": list(trial.normalization.mean),
        "std": list(trial.normalization.std),
        "image_size": height if height == width else [height, width],
        "classes": list(classes),
        "regularizer": trial.regularizer,
    }


def register(client: MlflowClient, run: RunInfo, folder: Path, name: str, tags: dict[str, str], pick: bool) -> None:
    """Register a saved model of a run as a version of `name`, once for each run; done again, it goes on where it was.

    Args:
        name: name of the registered model.
        tags: tags of that, by which it is known as ours.
        pick: whether the alias goes to this version.

    Raises:
        MlflowException: if the server refuses it, or is away.
        FileNotFoundError: if the folder is gone.
        PermissionError: if there is a registered model of that name that is not ours.
    """
    with contextlib.suppress(MlflowException):  # there already; if the server is away, the next says so
        client.create_registered_model(name, tags)
    if not tags.items() <= client.get_registered_model(name).tags.items():
        raise PermissionError(f"there is a registered model {name!r} of another origin; it stays as it is")
    versions = client.search_model_versions(f"name = '{name}' and run_id = '{run.run_id}'")
    version = versions[0] if versions else _upload(client, run, folder, name)
    if pick:
        client.set_registered_model_alias(name, ALIAS, version.version)


def _upload(client: MlflowClient, run: RunInfo, folder: Path, name: str) -> ModelVersion:
    if not folder.exists():
        raise FileNotFoundError(f"{folder} is gone")
    begun = client.search_logged_models([run.experiment_id], f"source_run_id = '{run.run_id}'")
    logged = begun[0] if begun else client.create_logged_model(run.experiment_id, "model", source_run_id=run.run_id)
    if logged.status != LoggedModelStatus.READY:
        client.log_model_artifacts(logged.model_id, str(folder))
        client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
    outputs = client.get_run(run.run_id).outputs
    if logged.model_id not in {output.model_id for output in (outputs.model_outputs if outputs else ())}:
        client.log_outputs(run.run_id, [LoggedModelOutput(logged.model_id, step=0)])
    return client.create_model_version(
        name,
        logged.artifact_location,
        run_id=run.run_id,
        description="Normalized images (b, 3, h, w) in, logits (b, k) out. A graph made with torch.export.",
        await_creation_for=0,
        model_id=logged.model_id,
    )
