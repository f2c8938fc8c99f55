"""Shape annotations are checked while tests run; the embedded data set is written once; an object store on loopback."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # threads of several processes on few cores wait for each other

os.environ["RAY_ADDRESS"] = "local"  # no test joins a cluster that runs on this machine

import boto3
import hypothesis
import pytest
import torch
from jaxtyping import install_import_hook
from moto.server import ThreadedMotoServer

hypothesis.settings.register_profile("repeatable", derandomize=True)  # the same examples on every machine
hypothesis.settings.load_profile("repeatable")

install_import_hook(["regularizers", "trainer"], "beartype.beartype")

try:
    import torchvision  # noqa: F401  # timm imports it
except (
    RuntimeError
):  # its wheel is made for CUDA: beside a CPU torch its compiled box operators, unused here, are missing
    for _name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{_name}", "() -> ()")


SHIPPED = [
    "none", "datagrad", "spectreg", "l2", "tv", "tv_abs", "tv_abs_unscaled", "mse", "cor", "grad_diff", "sobel_edges",
    "psnr", "psnr_hvs", "ssim", "ssim_unfiltered", "psnr_hvs_dct", "psnr_hvs_m",
]  # fmt: skip


@pytest.fixture(scope="session")
def shipped():
    """Names of the regularizers that come with the project; the registry may hold more, of whoever tries their own."""
    return SHIPPED


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    from trainer.digits import write_digits

    folder = tmp_path_factory.mktemp("data") / "digits"
    write_digits(str(folder))
    return folder


@pytest.fixture(scope="module")
def object_store():
    """A client of an S3 server that trainer.locations reaches too."""
    from trainer import locations

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    settings = {
        "AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
    locations._object_store.cache_clear()  # clients of another server
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        yield boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
    server.stop()
