"""The winner as a model of MLflow: an exported graph, so that whoever loads it runs no pickle and no code of ours.

mlflow models serve --env-manager local -m models:/SWEEP@pick
"""

import contextlib
import logging
import shutil
from pathlib import Path

import mlflow.pytorch
import numpy as np
import torch
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

from trainer.evaluate.checkpoints import load_subject
from trainer.evaluate.gallery import examples
from trainer.shards import evaluation_splits

ALIAS = "pick"


def save_model(checkpoint: str, data: str, folder: Path) -> Path:
    """Save a trial's network in MLflow's format: standardised images (b, 3, h, w) in, logits (b, k) out.

    The input example is two test images of the data.

    Args:
        checkpoint: of the trial.
        data: shards it was trained on.
        folder: of the model, there only when it is whole; one that is there already stays.

    Returns:
        The folder.
    """
    if folder.exists():
        return folder
    logging.getLogger("mlflow").setLevel(logging.ERROR)  # it advises on what is settled here
    subject = load_subject(checkpoint, data, {})
    _, test = evaluation_splits(data)
    images = examples(test, subject.trial.image_size, 2, torch.device("cpu")).images.numpy()
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
        metadata={"classes": list(test.classes), "regularizer": subject.trial.regularizer},
    )
    partial.rename(folder)
    return folder


def register(client: MlflowClient, experiment: str, run: str, folder: Path, name: str) -> None:
    """Register a saved model as a version of `name` that belongs to the run, and make it the pick; once for each run.

    Raises:
        MlflowException: if the server refuses it, or is away.
        FileNotFoundError: if the folder is gone.
    """
    with contextlib.suppress(MlflowException):  # there from an earlier pick; if the server is away, the next says so
        client.create_registered_model(name)
    versions = client.search_model_versions(f"name = '{name}' and run_id = '{run}'")
    if versions:
        version = versions[0]
    else:
        if not folder.exists():
            raise FileNotFoundError(f"{folder} is gone")
        begun = client.search_logged_models([experiment], f"source_run_id = '{run}'")  # by a process that was killed
        logged = begun[0] if begun else client.create_logged_model(experiment, name=name, source_run_id=run)
        client.log_model_artifacts(logged.model_id, str(folder))
        client.finalize_logged_model(logged.model_id, "READY")
        client.log_outputs(run, [LoggedModelOutput(logged.model_id, step=0)])
        version = client.create_model_version(
            name,
            logged.artifact_location,
            run_id=run,
            description="Standardised images (b, 3, h, w) in, logits (b, k) out. A graph made with torch.export.",
            await_creation_for=0,
            model_id=logged.model_id,
        )
    client.set_registered_model_alias(name, ALIAS, version.version)
