"""Errors are told apart by their type: those that are worth another try, and what a trial's failure says."""

import pytest
import ray
import torch

from trainer.cache import ShardCache
from trainer.checkpoint_io import load_newest, load_state
from trainer.config import UsageError
from trainer.distributed import name_lost_workers
from trainer.ray_trial import describe_failure, is_retryable
from trainer.retryable import LostWorkerError, UnreachableError


def out_of_memory():
    with pytest.raises(RuntimeError) as error:
        torch.empty(10**16)
    return error.value


@pytest.mark.parametrize(
    ("error", "retryable"),
    [
        (LostWorkerError("gone"), True),
        (UnreachableError("no answer"), True),
        (ConnectionResetError("away"), True),
        (OSError(28, "No space left on device"), True),
        (torch.distributed.DistNetworkError("timed out"), True),
        (ray.exceptions.ActorDiedError(), True),
        (UsageError("the connection of these layers is wrong"), False),
        (RuntimeError("shape mismatch"), False),
        (out_of_memory(), False),
    ],
)
def test_a_lost_worker_node_connection_or_disk_is_worth_another_try(error, retryable):
    assert is_retryable(error) == retryable


def test_a_connection_that_pytorch_reports_without_a_type_has_one():
    closed = RuntimeError("[/gloo/transport/tcp/pair.cc:598] Connection closed by peer")
    with pytest.raises(LostWorkerError, match="closed by peer"), name_lost_workers():
        raise closed
    with pytest.raises(RuntimeError, match="shape") as other, name_lost_workers():
        raise RuntimeError("shape mismatch")
    assert not is_retryable(other.value)


def test_storage_that_does_not_answer_is_retryable_and_what_is_not_there_is_not(tmp_path, monkeypatch):
    def refuse(location):
        raise OSError("the bucket does not answer")

    with pytest.raises(UsageError) as absent:
        load_state(f"{tmp_path}/epoch_0001")
    assert not is_retryable(absent.value)
    (tmp_path / "epoch_0001").mkdir()
    monkeypatch.setattr("trainer.checkpoint_io.open_file", refuse)
    monkeypatch.setattr("trainer.cache.open_file", refuse)
    monkeypatch.setattr("trainer.cache._back_off", lambda attempt: None)
    for read in (
        lambda: load_state(f"{tmp_path}/epoch_0001"),
        lambda: load_newest(str(tmp_path), "epoch_0001"),
        lambda: ShardCache(str(tmp_path / "cache")).open("s3://bucket/000.tar").__enter__(),
    ):
        with pytest.raises(UsageError, match="the bucket does not answer") as unreachable:
            read()
        assert is_retryable(unreachable.value)


def test_a_failure_is_one_line_with_its_remedy():
    assert "lower batch_size" in describe_failure(out_of_memory())
    assert describe_failure(UsageError("wrong")) == "wrong"
