"""Shape annotations are checked while tests run."""

from jaxtyping import install_import_hook

install_import_hook(["regularizers", "trainer"], "beartype.beartype")
