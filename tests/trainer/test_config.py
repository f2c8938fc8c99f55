"""Settings of a trial that cannot be together."""

import dataclasses

import pytest

from trainer.config import UsageError


def test_compile_refuses_batch_statistics(trial):
    with pytest.raises(UsageError, match="^compile=True: needs batch_norm frozen, not stop"):
        dataclasses.replace(trial, compile=True, batch_norm="stop")
