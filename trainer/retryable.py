"""Errors that may not come back when the same is tried again: a worker, a node, a connection or a disk was lost.

Imports nothing heavy; `trainer.ray_trial.is_retryable` knows the errors of PyTorch and Ray besides.
"""

from trainer.errors import UsageError


class RetryableError(Exception):
    """Base of the errors that are worth another try."""


class LostWorkerError(RetryableError, RuntimeError):
    """Another worker of the trial, or the connection to it, is gone."""


class UnreachableError(RetryableError, UsageError):
    """Storage or a server did not answer; the user may have to fix that."""
