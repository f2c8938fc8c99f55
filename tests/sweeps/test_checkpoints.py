"""What of a sweep's checkpoints is kept, in a folder and in an object store, and whether they fit."""

import dataclasses
import shutil
from types import SimpleNamespace

import pytest
import torch

from sweeps import checkpoints
from sweeps.checkpoints import check_space, keep_only, only_weights, space_needed, state_size
from sweeps.ranking import Row, pick
from sweeps.settings import Sweep
from trainer.checkpoint_io import load_state, save_state
from trainer.config import Trial, UsageError
from trainer.locations import folders_in
from trainer.models import build_model
from trainer.weights import load_weights

ROBUST = {"none0": 0.1, "l20": 0.7, "l21": 0.8, "tv0": 0.6, "again0": 0.0, "failed0": 0.0}


@pytest.fixture(params=["folder", "object store"])
def sweep(request, tmp_path, digits):
    storage = str(tmp_path)
    if request.param == "object store":
        name = request.node.originalname.replace("_", "-")[:40]
        request.getfixturevalue("object_store").create_bucket(Bucket=name)
        storage = f"s3://{name}/{tmp_path.name}"
    trial = Trial(data=str(digits), model="resnet8")
    return Sweep(name="s", storage=storage, trial=trial, regularizers=("l2", "tv"),
                 local_dir=str(tmp_path))  # fmt: skip


@pytest.fixture
def state(sweep):
    """Of a model with momentum, as `fit` leaves it."""
    model = build_model("resnet8", 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 2, "step": 9, "points": [],
            "trial": sweep.trial.to_dict(), "metrics": {"epoch": 2.0}}  # fmt: skip


@pytest.fixture
def rows(sweep, state):
    """Trials with two checkpoints each."""
    for trial in ROBUST:
        for epoch in (1, 2):
            save_state(state, f"{sweep.trials_folder}/{trial}/epoch_000{epoch}")
    return [
        Row(trial_id=trial, regularizer=trial[:-1], weight=1.0, strength=1.0, seed=0, accuracy=0.9, heatmap_ssim=0.0,
            status="failed" if trial == "failed0" else "finished", robust_accuracy=robust, heatmap_correlation=0.0,
            checkpoint=f"{sweep.trials_folder}/{trial}/epoch_0002")
        for trial, robust in ROBUST.items() if trial != "again0"
    ]  # fmt: skip


def whole(sweep):
    return {trial for trial in ROBUST if not only_weights(sweep, trial)}


@pytest.mark.parametrize(
    ("keep", "left"),
    [("best", {"l21"}), ("top-2", {"l20", "l21"}), ("all", {"none0", "l20", "l21", "tv0", "again0"})],
)
def test_losers_keep_their_weights_and_no_more(sweep, rows, state, keep, left):
    sweep = dataclasses.replace(sweep, keep=keep)
    picked = pick(rows, 0.02)
    assert picked.trial_id == "l21"
    reduced = keep_only(sweep, rows, ["again0"], picked)
    assert whole(sweep) == left | {"failed0"}  # what failed may be tried again
    assert reduced == len(ROBUST) - len(left) - 1
    for trial in ROBUST:
        for name in ("epoch_0001", "epoch_0002"):
            kept = load_state(f"{sweep.trials_folder}/{trial}/{name}")
            assert ("optimizer" in kept) == (trial in whole(sweep))
            assert kept["trial"] == state["trial"]
            assert all(torch.equal(value, kept["model"][key]) for key, value in state["model"].items())
    load_weights(build_model("resnet8", 10), f"{sweep.trials_folder}/none0/epoch_0002")
    assert keep_only(sweep, rows, ["again0"], picked) == 0


def test_what_was_interrupted_while_reducing_is_taken_up_again(sweep, rows, monkeypatch):
    saved = []

    def interrupted(state, folder):
        if len(saved) == 3:
            raise KeyboardInterrupt
        saved.append(folder)
        save_state(state, folder)

    monkeypatch.setattr(checkpoints, "save_state", interrupted)
    with pytest.raises(KeyboardInterrupt):
        keep_only(sweep, rows, [], pick(rows, 0.02))
    monkeypatch.setattr(checkpoints, "save_state", save_state)
    assert all(load_state(f"{sweep.trials_folder}/{trial}/epoch_0002")["epoch"] == 2 for trial in ROBUST)
    assert keep_only(sweep, rows, [], pick(rows, 0.02)) == 2
    for trial in ("none0", "l20", "tv0"):
        assert all(
            "optimizer" not in load_state(f"{sweep.trials_folder}/{trial}/{name}")
            for name in sorted(folders_in(f"{sweep.trials_folder}/{trial}"))
        )


def test_the_size_is_that_of_a_checkpoint_and_too_little_room_is_refused(tmp_path, digits, monkeypatch):
    trial = Trial(data=str(digits), model="resnet8")
    sweep = Sweep(name="s", storage=str(tmp_path), trial=trial, regularizers=("l2", "tv"),
                  trials_per_regularizer=4, seeds=2, max_concurrent=3)  # fmt: skip
    model = build_model("resnet8", 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    size = state_size(trial)
    assert size < (tmp_path / "state.pt").stat().st_size < 1.2 * size
    needed = space_needed(sweep)
    assert needed == pytest.approx(((3 * 4 + 2 * (1 + 2 * 2)) * 2 + 3) * size, rel=0.05)
    (tmp_path / "s").mkdir()
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=needed))
    assert "are free" in check_space(sweep)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=needed - 1))
    with pytest.raises(UsageError, match="lower trials_per_regularizer"):
        check_space(sweep)
