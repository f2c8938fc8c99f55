"""Checkpoints are whole or passed over."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from trainer.checkpoint_io import load_newest, save_state
from trainer.config import UsageError

STATE = {"model": {"w": torch.arange(200_000.0)}, "epoch": 1}


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path):
    save_state(STATE, f"{tmp_path}/epoch_0001")
    script = (
        "import resource, sys, torch\n"
        "from trainer.checkpoint_io import save_state; from trainer.config import UsageError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"  # as a disk that is full in the middle
        "state = {'model': {'w': torch.arange(200_000.0)}, 'epoch': 2}\n"
        "try: save_state(state, sys.argv[1])\n"
        "except UsageError as error: print(error); sys.exit(3)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, f"{tmp_path}/epoch_0002"], cwd=Path(__file__).parents[2], text=True,
        stdout=subprocess.PIPE, preexec_fn=lambda: signal.signal(signal.SIGXFSZ, signal.SIG_IGN),
    )  # fmt: skip
    assert ended.returncode == 3
    assert "File too large" in ended.stdout
    assert list((tmp_path / "epoch_0002").iterdir()) == []
    state, name = load_newest(str(tmp_path), "epoch_0002")
    assert (name, state["epoch"]) == ("epoch_0001", 1)


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone", "empty"])
def test_the_newest_good_checkpoint_is_found(tmp_path, damage, caplog):
    for epoch in (1, 2, 3):
        save_state(STATE | {"epoch": epoch}, f"{tmp_path}/epoch_{epoch:04d}")
    path = tmp_path / "epoch_0002/state.pt"
    content = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    else:
        content[500_000] ^= 1
        path.write_bytes({"cut": content[:500], "flipped": content, "empty": b""}[damage])
    assert load_newest(str(tmp_path), "epoch_0003")[0]["epoch"] == 3
    state, name = load_newest(str(tmp_path), "epoch_0002")
    assert (name, state["epoch"]) == ("epoch_0001", 1)
    assert "epoch_0002" in caplog.text
    shutil.rmtree(tmp_path / "epoch_0001")
    with pytest.raises(UsageError, match="epoch_0002"):
        load_newest(str(tmp_path), "epoch_0002")
