"""Names of the regularizers, by their files; importing the files takes PyTorch, and seconds."""

import pkgutil
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
SHARED = ("base", "functional")  # beside the regularizers, and files whose names begin with an underscore


class RegularizerImportError(ImportError):
    """A file that cannot be taken for a regularizer; the message names it, what is wrong and the remedy."""


def file_names() -> list[str]:
    """Every file of this folder, sorted; without the shared ones and `_*.py`."""
    names = [info.name for info in pkgutil.iter_modules([str(FOLDER)])]
    return sorted(name for name in names if not name.startswith("_") and name not in SHARED)


def regularizer_names() -> list[str]:
    """Names in the registry if it is imported, else the names of the files."""
    registry = getattr(sys.modules.get(f"{__package__}._registry"), "REGULARIZERS", None)
    return file_names() if registry is None else sorted(registry)
