"""Shape annotations are checked while tests run; the embedded data set is written once.

Needs no more than torch, jaxtyping and pytest, as `tests/regularizers` does; what else a test needs, it imports itself.
"""

import importlib.util
import os

os.environ["OMP_NUM_THREADS"] = "1"  # threads of several processes on few cores wait for each other

os.environ["RAY_ADDRESS"] = "local"  # no test joins a cluster that runs on this machine

import pytest
from jaxtyping import install_import_hook

if importlib.util.find_spec("beartype"):
    install_import_hook(["regularizers", "trainer"], "beartype.beartype")

if importlib.util.find_spec("hypothesis"):
    import hypothesis

    hypothesis.settings.register_profile("repeatable", derandomize=True)  # the same examples on every machine
    hypothesis.settings.load_profile("repeatable")


def pytest_configure(config):
    """Here instead of in pyproject.toml, as pytest imports what a filter names."""
    if importlib.util.find_spec("beartype"):
        config.addinivalue_line("filterwarnings", "ignore::beartype.roar.BeartypeDecorHintPep585DeprecationWarning")


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
