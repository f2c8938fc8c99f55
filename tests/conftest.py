"""Shape annotations are checked while tests run; the embedded data set is written once."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # threads of several processes on few cores wait for each other

os.environ["RAY_ADDRESS"] = "local"  # no test joins a cluster that runs on this machine

import pytest
import torch
from jaxtyping import install_import_hook

install_import_hook(["regularizers", "trainer"], "beartype.beartype")

try:
    import torchvision  # noqa: F401  # timm imports it
except (
    RuntimeError
):  # its wheel is made for CUDA: beside a CPU torch its compiled box operators, unused here, are missing
    _operators = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _operators.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    from trainer.digits import write_digits

    folder = tmp_path_factory.mktemp("data") / "digits"
    write_digits(folder)
    return folder
