"""Shape annotations are checked while tests run; the embedded data set is written once."""

import pytest
from jaxtyping import install_import_hook

install_import_hook(["regularizers", "trainer"], "beartype.beartype")


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    from trainer.digits import write_digits

    folder = tmp_path_factory.mktemp("data") / "digits"
    write_digits(folder)
    return folder
