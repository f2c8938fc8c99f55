"""Read a file of weights: its content decides what it is, not its name, and nothing in it is executed."""

import io
import pickle
import pickletools
import re
import warnings
import zipfile
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from trainer.errors import FieldError, UsageError
from trainer.locations import file_size, folders_in, is_url, open_file, read_json

STATE_FILE = "state.pt"  # in the checkpoint folder of a trial
REMEDY = "where its code is at hand, write the weights alone: torch.save(model.state_dict(), FILE)"
FORMATS = {  # first bytes of what is taken for weights, and is not
    b"\x1f\x8b": "it is compressed with gzip; unpack it first",
    b"BZh": "it is compressed with bzip2; unpack it first",
    b"\xfd7zXZ": "it is compressed with xz; unpack it first",
    b"\x28\xb5\x2f\xfd": "it is compressed with zstd; unpack it first",
    b"\x89HDF": "it is an HDF5 file, as Keras writes them; only weights of PyTorch are read",
    b"GGUF": "it is a GGUF file; only weights of PyTorch are read",
    b"\x93NUMPY": "it is a NumPy array; only weights of PyTorch are read",
}


class _Ignored:
    """Stands for an object of no interest beside the weights, whatever it is made of."""

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _Mapping:
    """Stands for a class of dictionaries: makes plain ones."""

    def __new__(cls, *arguments: Any) -> Any:
        return OrderedDict()


# Settings and figures that training scripts keep beside the weights. PyTorch's reader, which makes tensors and plain
# values alone, is given stand-ins without behavior for them: no code of these libraries runs, nor need they be there.
OBJECTS = {
    "argparse": ("Namespace",),
    "types": ("SimpleNamespace",),
    "datetime": ("datetime", "date", "timedelta"),
    "pathlib": ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"),
    "pathlib._local": ("PosixPath", "WindowsPath"),  # of Python 3.13
    "builtins": ("int", "float", "str", "bool", "list", "dict", "tuple"),
    "typing": ("Any",),
    "numpy": ("dtype", "ndarray"),
    "numpy.core.multiarray": ("scalar", "_reconstruct"),  # of numpy 1
    "numpy._core.multiarray": ("scalar", "_reconstruct"),
    "omegaconf.dictconfig": ("DictConfig",),
    "omegaconf.listconfig": ("ListConfig",),
    "omegaconf.base": ("ContainerMetadata", "Metadata"),
    "omegaconf.nodes": ("AnyNode", "IntegerNode", "FloatNode", "StringNode", "BooleanNode"),
}
MAPPINGS = {
    "collections": ("defaultdict",),
    "easydict": ("EasyDict",),
    "addict.addict": ("Dict",),
    "yacs.config": ("CfgNode",),
    "pytorch_lightning.utilities.parsing": ("AttributeDict",),
    "lightning.pytorch.utilities.parsing": ("AttributeDict",),
    "lightning_fabric.utilities.data": ("AttributeDict",),
    "lightning.fabric.utilities.data": ("AttributeDict",),
}
HARMLESS = [
    (stand_in, f"{module}.{name}")
    for stand_in, modules in ((_Ignored, OBJECTS), (_Mapping, MAPPINGS))
    for module, names in modules.items()
    for name in names
]


def weights_file(location: str) -> str:
    """The file of a checkpoint, a path or URL, which may be given as its trial's folder."""
    if is_url(location):
        whole = location.rstrip("/")
        return whole if "." in whole.rpartition("/")[2] else f"{whole}/{STATE_FILE}"
    path = Path(location).expanduser()
    return str(path / STATE_FILE if path.is_dir() else path)


def checkpoint_in(location: str) -> str:
    """A location of weights as it is or, of a trial's folder, its last checkpoint.

    Raises:
        UsageError: if it is the folder of a sweep; which of its checkpoints are meant is the user's to say.
    """
    folder = location.rstrip("/") if is_url(location) else str(Path(location).expanduser())
    try:
        if folder.startswith(("http://", "https://")) or file_size(weights_file(folder)) is not None:
            return location
        inside = folders_in(folder)
    except OSError:  # the reader of the file reports it
        return location
    for name in sorted(inside, reverse=True):
        if name.startswith("epoch_") and file_size(f"{folder}/{name}/{STATE_FILE}") is not None:
            return f"{folder}/{name}"
    if "trials" not in inside:
        return location
    result = read_json(f"{folder}/result.json") or {}
    picked = [row["checkpoint"] for row in result.get("trials", ()) if row["trial_id"] == result.get("pick")]
    trials = sorted(folders_in(f"{folder}/trials"))
    if not picked and not trials:
        raise FieldError("checkpoint", location, "is the folder of a sweep of which no trial has begun")
    remedy = f"its pick is {picked[0]}" if picked else f"its trials are in {folder}/trials: {', '.join(trials[:5])}"
    raise FieldError("checkpoint", location, f"is the folder of a sweep; {remedy}; give one checkpoint")


def read_content(file: str) -> Any:
    """What a weights file, by path or URL, holds: tensors and plain values; nothing in it is executed.

    PyTorch's files, of any version, and safetensors are told apart by their content.

    Raises:
        UsageError: if it is missing, or something else, which is named.
    """
    try:
        with open_file(file) as stream:
            content = stream.read()
    except FileNotFoundError:
        raise FieldError("checkpoint", file, "no such file") from None
    except UsageError:
        raise
    except Exception as error:  # of the network and of object stores
        raise _unreadable(file, _reason(error)) from None
    other = _what_else(content)
    if other:
        raise _unreadable(file, other)
    if _is_safetensors(content):
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            return load(content)
        except SafetensorError as error:
            raise _unreadable(file, f"it is a damaged or incomplete safetensors file: {_reason(error)}") from None
    return _read_pickle(file, content)


def _read_pickle(file: str, content: bytes) -> Any:
    try:
        with torch.serialization.safe_globals(HARMLESS), warnings.catch_warnings():  # type: ignore[arg-type]
            warnings.simplefilter("ignore")  # of pickle protocols, which do not matter here
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if named is None:
            _refuse_plain_pickle(file, content)
            said = re.search(r"Unpickler error: (.+)", str(error))
            detail = f": {said[1][:100]}" if said else ""
            raise _unreadable(file, f"it is damaged, or no file of torch.save{detail}") from None
        what = "a whole pickled model" if b"torch.nn.modules." in content else "a pickled object"
        raise FieldError(
            "checkpoint", file, f"holds {what} ({named[1]}), and loading that may run any code; {REMEDY}"
        ) from None
    except Exception as error:  # the zip and pickle readers raise errors of all kinds
        _refuse_plain_pickle(file, content)
        raise _unreadable(file, f"it is damaged or incomplete: {type(error).__name__}: {_reason(error)}") from None


def _refuse_plain_pickle(file: str, content: bytes) -> None:
    """Call a file of pickle.dump by its name: one pickle, and nothing behind it; this only looks at its opcodes."""
    try:
        last = max(place for *_, place in pickletools.genops(content) if place is not None)
    except ValueError:  # no pickle, or a damaged one
        return
    if last == len(content) - 1:
        raise FieldError("checkpoint", file, f"is a file of pickle.dump, not of torch.save; {REMEDY}")


def _what_else(content: bytes) -> str:
    """What a file is that holds no weights; empty if it may hold some."""
    if not content:
        return "it is empty"
    start = _text(content[:4096]).lstrip()
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the file it points to; fetch that with: git lfs pull"
    if content.startswith(b"PK"):
        return _what_else_zipped(content)
    if start[:1] == b"<":
        title = re.search(rb"<title>(.*?)</title>", start, re.DOTALL | re.IGNORECASE)
        kind = "an HTML page" if b"<html" in start.lower() or b"<!doctype" in start.lower() else "an XML document"
        named = f", {title[1].decode(errors='replace').strip()[:60]!r}" if title else ""
        return f"it is {kind}{named}; download the file itself"
    for magic, words in FORMATS.items():
        if content.startswith(magic):
            return words
    if content[257:262] == b"ustar":
        return "it is a tar archive; unpack it first"
    if content[:1] == b"\x80" or _is_safetensors(content):
        return ""
    text = " ".join(start[:200].decode(errors="replace").split())
    if not text.isprintable() or "\ufffd" in text[:40]:
        return "its format is unknown"
    return "it is a JSON file" if text[:1] in ("{", "[") else f"it is text: {text[:40]!r}"


def _text(content: bytes) -> bytes:
    """As UTF-8 without a mark, if it begins with one of Unicode."""
    for mark, encoding in ((BOM_UTF8, "utf-8"), (BOM_UTF16_LE, "utf-16-le"), (BOM_UTF16_BE, "utf-16-be")):
        if content.startswith(mark):
            return content.removeprefix(mark).decode(encoding, "replace").encode()
    return content


def _what_else_zipped(content: bytes) -> str:
    if not zipfile.is_zipfile(io.BytesIO(content)):
        return f"its end is missing: {len(content)} bytes of a larger archive; download it again"
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = archive.namelist()
    if any(name.endswith("constants.pkl") or "/code/" in name for name in names):
        return f"it is a TorchScript archive, a program; {REMEDY}"
    if not any(name.endswith("data.pkl") for name in names):
        return f"it is a ZIP archive that torch.save did not write; it holds {', '.join(names[:3])}"
    return ""


def _is_safetensors(content: bytes) -> bool:
    return content[8:9] == b"{" and 2 <= int.from_bytes(content[:8], "little") < 1 << 32


def _unreadable(file: str, why: str) -> UsageError:
    return FieldError("checkpoint", file, f"not a readable weights file: {why}")


def _reason(error: Exception) -> str:
    """One line, without the terminal's control codes."""
    return re.sub(r"\x1b\[[0-9;]*m", "", (str(error).splitlines() or [""])[0])[:200]
