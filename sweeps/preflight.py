"""What every node must see: the storage that all of them write to, the data and the weights they read."""

import uuid

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from trainer.config import Trial
from trainer.errors import FieldError, UsageError
from trainer.locations import file_size, open_file, remove_file, whole_file
from trainer.shards import read_shards

LIMIT = 300  # seconds for all nodes to answer; the first task of a node starts a process and unpacks the code
FIX = "give a folder that all nodes share, or an s3:// or gs:// URL"


def check_shared(storage: str, trial: Trial | None) -> None:
    """Let each node look for what this process sees, and write beside it.

    Args:
        trial: trial with the data and the checkpoint to read; None if they are not made yet.

    Raises:
        UsageError: if one cannot, or does not answer.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2:
        return
    token = f"{storage}/.seen-by-all-{uuid.uuid4().hex}"
    with whole_file(token) as stream:
        stream.write(b"here")
    look = ray.remote(num_cpus=0)(_look)
    try:
        answers = [
            look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
                token, trial
            )
            for node in nodes
        ]
        for node, wrong in zip(nodes, ray.get(answers, timeout=LIMIT), strict=True):
            if wrong:
                raise UsageError(f"{wrong} (node {node['NodeManagerHostname']}, {node['NodeManagerAddress']}); {FIX}")
    except ray.exceptions.RayError as error:
        why = str(error).strip().rpartition("\n")[2]
        raise FieldError("storage", storage, f"not every node could be asked ({why})") from None
    finally:
        remove_file(token)


def _look(token: str, trial: Trial | None) -> str:
    """What this node cannot see or write, in words."""
    storage = token.rpartition("/")[0]
    mine = f"{token}-{ray.get_runtime_context().get_node_id()}"
    try:
        if file_size(token) is None:
            return f"`storage` {storage}: what one node writes there, another does not see"
        with whole_file(mine) as stream:
            stream.write(b"here too")
        remove_file(mine)
        if trial is not None:
            read_shards(trial.data, "train")
        if trial is not None and trial.checkpoint is not None:
            open_file(trial.checkpoint).close()
    except UsageError as error:
        return error.said("`{}`".format)  # names of settings stay names, for the command line to show as flags
    except OSError as error:
        return str(error)
    return ""
